/** What a judge says that questions ask for. */
import pLimit from 'p-limit';
import type { Pool } from 'pg';
import { capabilityPrompt, readCapability } from '../environments/deep-research/tasks/capability-judge.ts';
import { contentKey } from '../schemas/canonical.ts';
import type { JudgeParameters } from '../schemas/node-parameters.ts';
import type { Capability } from '../schemas/task.ts';
import type { JudgeClient } from './adapters/judge-client.ts';

export interface CapabilityJudge {
  pool: Pool;
  client: JudgeClient;
  judge: JudgeParameters;
  nodeKey: string;
  signal: AbortSignal;
}

/** Asked at a time by one node. */
const CONCURRENT = 32;

/**
 * The capability of each question, in their order; null where no reply named one. A reply that names one is durable
 * before it counts, under what was asked: no later attempt and no other node asks it again, and all of them hear the same.
 * Throws JUDGE_UNAVAILABLE or JUDGE_REFUSED, after what was in flight has been kept.
 */
export async function judgeCapabilities(
  questions: readonly string[],
  { pool, client, judge, nodeKey, signal }: CapabilityJudge,
): Promise<(Capability | null)[]> {
  const asked = questions.map((question) => nameOf(judge, question));
  const { rows } = await pool.query<{ asked: string; reply: string }>(
    'select asked, reply from judge_replies where asked = any($1)',
    [asked],
  );
  const known = new Map(rows.map((row) => [row.asked, row.reply]));

  const ask = async (question: string, name: string): Promise<Capability | null> => {
    const read = (text: string) => (readCapability(text) === null ? null : text);
    const reply = await client.ask(judge, { prompt: capabilityPrompt(judge.prompt, question), read }, signal);
    if (reply === null) return null;
    const kept = await pool.query<{ reply: string }>(
      `insert into judge_replies (asked, node_key, reply) values ($1, $2, $3)
       on conflict (asked) do update set asked = excluded.asked returning reply`,
      [name, nodeKey, reply],
    );
    return readCapability(kept.rows[0]?.reply ?? '');
  };

  const limit = pLimit(CONCURRENT);
  let hasFailed = false;
  const answers = await Promise.allSettled(
    questions.map((question, index) => {
      const name = asked[index] as string;
      const reply = known.get(name);
      if (reply !== undefined) return readCapability(reply);
      return limit(async () => {
        if (hasFailed) return null; // the first failure is thrown below
        try {
          return await ask(question, name);
        } catch (error) {
          hasFailed = true;
          throw error;
        }
      });
    }),
  );
  return answers.map((answer) => {
    if (answer.status === 'rejected') throw answer.reason;
    return answer.value;
  });
}

const nameOf = (judge: JudgeParameters, question: string): string => contentKey({ judge, question });
