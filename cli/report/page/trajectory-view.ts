/** One trajectory, turn by turn. */
import type { ShownTrajectory, ShownTurn } from '../document.ts';
import { type Child, el } from './dom.ts';
import { count, duration, number, shortHash, words } from './format.ts';
import { readAction, readResults } from './read-turn.ts';
import { facts } from './what-was-run.ts';

export function trajectoryView(trajectory: ShownTrajectory): HTMLElement[] {
  const { score, turns } = trajectory;
  const sampled = turns.reduce((sum, { action_tokens }) => sum + action_tokens, 0);
  const observed = turns.reduce((sum, { observation }) => sum + (observation?.tokens ?? 0), 0);
  const all = trajectory.prompt_tokens + sampled + observed;
  return [
    facts([
      ['question', el('span', { class: 'text' }, trajectory.question)],
      ['reference answer', text(trajectory.reference ?? 'not known any more')],
      ...(trajectory.aliases.length === 0 ? [] : [['also right', trajectory.aliases.join(' · ')] as [string, Child]]),
      ['answer given', text(trajectory.answer ?? 'none')],
      ['outcome', el('span', { class: `outcome outcome-${trajectory.outcome}` }, trajectory.outcome)],
      ['ended by', words(trajectory.termination)],
      ...(trajectory.failure_class === null ? [] : [['broken by', trajectory.failure_class] as [string, Child]]),
      ['reward', number(trajectory.reward)],
      [
        'score',
        `exact match ${number(score.exact_match)}, F1 ${number(score.f1)}, format ${score.format_valid ? 'valid' : 'invalid'}, answer ${score.answer_in_observation ? 'seen' : 'not seen'} in an observation`,
      ],
      [
        'tokens',
        `${count(all)}: prompt ${count(trajectory.prompt_tokens)}, sampled ${count(sampled)}, observed ${count(observed)}`,
      ],
      ['sampled with', `temperature ${trajectory.temperature}, top-p ${trajectory.top_p}, seed ${trajectory.seed}`],
      ['checkpoint', el('code', { title: trajectory.checkpoint }, shortHash(trajectory.checkpoint))],
      ['evidence', trajectory.evidence.length === 0 ? 'none named' : trajectory.evidence.join(' · ')],
    ]),
    el('ol', { class: 'turns' }, ...turns.map(turnView)),
  ];
}

const text = (value: string): HTMLElement => el('span', { class: 'text' }, value);

function turnView(turn: ShownTurn): HTMLElement {
  const kind = turn.status === 'malformed' ? 'malformed' : (turn.tool ?? 'malformed');
  return el(
    'li',
    { class: kind === 'answer' || kind === 'malformed' ? kind : 'call' },
    el('h4', {}, `Turn ${turn.turn + 1}: ${kind}`),
    el(
      'p',
      { class: 'turn-facts' },
      [
        `${count(turn.action_tokens)} tokens sampled`,
        ...(turn.latency_ms > 0 ? [`in ${duration(turn.latency_ms / 1000)}`] : []),
      ].join(' '),
      ' · reward ',
      el('strong', {}, turn.reward === null ? '–' : number(turn.reward)),
      ' · advantage ',
      el('strong', {}, turn.advantage === null ? '–' : number(turn.advantage)),
    ),
    ...actionView(turn.action),
    turn.observation === null ? null : observationView(turn),
  );
}

function actionView(action: string): Child[] {
  const { thought, call, answer, rest } = readAction(action);
  return [
    thought === null ? null : el('p', { class: 'text thought' }, el('em', {}, thought)),
    call === null ? null : callView(call),
    answer === null ? null : el('p', { class: 'text' }, el('strong', {}, 'Answer: '), answer),
    rest === '' ? null : el('pre', { tabindex: 0, 'aria-label': 'Text outside of tags' }, rest),
  ];
}

function callView({ name, queries, urls, goal }: NonNullable<ReturnType<typeof readAction>['call']>): HTMLElement {
  const items = [...queries.map((query) => `query: ${query}`), ...urls.map((url) => `page: ${url}`)];
  return el(
    'div',
    { class: 'call' },
    el('strong', {}, name),
    goal === null ? null : ` for: ${goal}`,
    el('ul', {}, ...items.map((item) => el('li', { class: 'text' }, item))),
  );
}

function observationView({ observation, tool }: ShownTurn): HTMLElement {
  const {
    text: told,
    tokens,
    status,
    latency_ms,
    cached,
    denied,
  } = observation as NonNullable<ShownTurn['observation']>;
  const results = tool === 'search' && status === 'ok' ? readResults(told) : null;
  const facts = [
    `${count(tokens)} tokens`,
    words(status),
    ...(latency_ms > 0 ? [duration(latency_ms / 1000)] : []),
    ...(cached ? ['cached'] : []),
    ...(denied > 0 ? [`${denied} pages held back`] : []),
  ];
  return el(
    'details',
    { open: true },
    el('summary', {}, `Observation: ${facts.join(' · ')}`),
    results === null
      ? el('pre', { tabindex: 0, 'aria-label': 'Observation' }, told)
      : el(
          'ol',
          { class: 'results' },
          ...results.map(({ title, url, snippet }) =>
            el(
              'li',
              {},
              el('strong', {}, title),
              el('div', { class: 'url' }, url),
              el('div', { class: 'text' }, snippet),
            ),
          ),
        ),
  );
}
