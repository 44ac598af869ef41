/**
 * Puts values in the place of `${vars.NAME}` and checks the references that stay: `${env:NAME}` in paths, and
 * checkpoints, which become edges of the plan. Anything else in `${…}` is text: there are no templates.
 */
import type { Located, LocatedMap, LocatedScalar, Path } from './located.ts';
import { child, countValues, mapValues, remembered } from './located.ts';
import { didYouMean, type Place, type Problem, problem, quoted } from './problem.ts';
import { chooseShape, partOf, type SchemaView } from './schema-walk.ts';
import { MAX_BYTES, MAX_NODES } from './strict-yaml.ts';

const REFERENCE = /(\$?)\$\{([^{}]*)\}/g;
const ENV = /^env:[A-Za-z_][A-Za-z0-9_]*$/;
const ARMS = new Set(['ablations', 'sweep']);
const NAMED = /^[a-z_][a-z0-9_]*(\.[a-z0-9_]+)*$/i;

export interface ReferenceResult {
  root: Located;
  problems: Problem[];
}

export function resolveReferences(root: LocatedMap, schema: SchemaView): ReferenceResult {
  const resolver = new Resolver(child(root, 'vars'));
  return { root: resolver.resolve(root, schema, []), problems: resolver.problems };
}

/** Whether anything in a part could be a reference. */
const mentions = (node: Located): boolean => {
  if (node.kind === 'scalar') return typeof node.value === 'string' && node.value.includes('${');
  return node.kind !== 'unset' && anyMention(node);
};
const anyMention = remembered((node) => {
  const parts = node.kind === 'list' ? node.items : [...node.entries.values()].map(({ value }) => value);
  return parts.some(mentions);
});

class Resolver {
  readonly problems: Problem[] = [];
  readonly #vars: Located | undefined;
  /** What variables have added to the spec: a few bytes could repeat one thousands of times. */
  #values = 0;
  #characters = 0;

  constructor(vars: Located | undefined) {
    this.#vars = vars;
  }

  resolve(node: Located, schema: SchemaView | undefined, path: Path): Located {
    if (path.length === 1 && ARMS.has(path[0] as string)) return node; // followed in each arm, where the field says what it holds
    if (!mentions(node)) return node;
    const shape = schema && chooseShape(schema, node);
    if (node.kind === 'map' || node.kind === 'list')
      return mapValues(node, (value, step) => this.resolve(value, partOf(shape, step), [...path, step]));
    if (node.kind === 'unset') return node;
    return this.#resolveText(node, shape?.holds, path);
  }

  #resolveText(node: LocatedScalar, holds: SchemaView['holds'], path: Path): Located {
    const { at } = node;
    const text = String(node.value);
    const whole = text.match(/^\$\{vars\.([a-z0-9_]+)\}$/);
    if (whole && path[0] !== 'vars') return this.#variable(whole[1] as string, at) ?? node;
    const value = text.replace(REFERENCE, (all, escaped: string, inner: string) => {
      if (escaped !== '') return all.slice(1);
      return this.#inText(inner, all, at, holds, path);
    });
    return value === text ? node : { kind: 'scalar', at, value };
  }

  #inText(inner: string, all: string, at: Place, holds: SchemaView['holds'], path: Path): string {
    if (ENV.test(inner)) {
      this.#checkEnv(inner.slice('env:'.length), at, holds, path);
      return all;
    }
    if (!NAMED.test(inner)) return all; // text, such as ${7*7}
    if (holds === 'checkpoint') return all; // an edge of the plan; checked with the stages
    const refuse = (message: string): string => {
      this.problems.push(problem('REF', at, message));
      return all;
    };
    if (path[0] === 'vars') return refuse('`vars` holds plain values; references are not followed there');
    const name = inner.match(/^vars\.([a-z0-9_]+)$/)?.[1];
    if (name === undefined) {
      return refuse(
        /^(base|policy\.base|stages\.)/.test(inner)
          ? `${quoted(all)} names weights; only a field that takes weights, such as \`from\`, can hold it`
          : `${quoted(all)} refers to nothing; there are \`\${vars.NAME}\`, \`\${env:NAME}\`, \`\${policy.base}\` and \`\${stages.NAME.checkpoint}\``,
      );
    }
    const found = this.#variable(name, at);
    if (found === null) return all;
    if (found.kind !== 'scalar') return refuse(`${quoted(all)} is not a single value, so it cannot be part of a text`);
    const inserted = String(found.value);
    this.#characters += inserted.length;
    return this.#characters > MAX_BYTES ? this.#refuseSize(at, all) : inserted;
  }

  /** Said once: whatever comes after is of no use. */
  #refuseSize<T>(at: Place, instead: T): T {
    if (!this.problems.some(({ code }) => code === 'SIZE'))
      this.problems.push(problem('SIZE', at, 'with all that variables repeat, the spec is larger than a spec may be'));
    return instead;
  }

  /** The value of a variable, standing where it is used. */
  #variable(name: string, at: Place): Located | null {
    const found = child(this.#vars, name);
    if (found === undefined) {
      const names = this.#vars?.kind === 'map' ? [...this.#vars.entries.keys()] : [];
      this.problems.push(problem('REF', at, `there is no variable ${quoted(name)}`, didYouMean(name, names)));
      return null;
    }
    if (found.kind === 'scalar') return { ...found, at };
    if (this.#values <= MAX_NODES) this.#values += countValues(found);
    return this.#values > MAX_NODES ? this.#refuseSize(at, null) : found;
  }

  #checkEnv(name: string, at: Place, holds: SchemaView['holds'], path: Path): void {
    const isSecretName = /KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL/i.test(name);
    if (holds === 'path' && !isSecretName) return;
    const field = path.filter((step) => typeof step === 'string').join('.');
    if (isSecretName && holds === 'path') {
      this.problems.push(
        problem('SECRET_FIELD', at, `${quoted(name)} is named like a secret; a path is stored, hashed and shown`),
      );
      return;
    }
    this.problems.push(
      problem(
        'SECRET_FIELD',
        at,
        `\`${field}\` takes no \`\${env:…}\`: its value is stored, hashed and shown; only paths may name a variable`,
      ),
    );
  }
}
