/** Light or dark: as the system says, until the reader says otherwise. */
import { el } from './dom.ts';

const DARK = '(prefers-color-scheme: dark)';

export function themeButton(): HTMLButtonElement {
  const button = el('button', { type: 'button' });
  const apply = (dark: boolean): void => {
    document.documentElement.dataset['theme'] = dark ? 'dark' : 'light';
    button.textContent = dark ? 'Light theme' : 'Dark theme';
  };
  const system = window.matchMedia(DARK);
  let chosen: boolean | null = null;
  apply(system.matches);
  system.addEventListener('change', ({ matches }) => chosen === null && apply(matches));
  button.addEventListener('click', () => {
    chosen = document.documentElement.dataset['theme'] !== 'dark';
    apply(chosen);
  });
  return button;
}
