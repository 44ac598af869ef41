/** A profile that names a test's own services, and a spec small enough to read at a glance. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parse, stringify } from 'yaml';
import { repoRoot } from '../../services/home.ts';

/** The embedded profile with addresses in the place of its stack, and digests for models that nobody loads. */
export function writeProfile(folder: string, { postgres, temporal }: { postgres: string; temporal: string }): string {
  const { embedded: _, ...local } = parse(readFileSync(join(repoRoot(), 'profiles', 'local.yaml'), 'utf8'));
  const withDigests = (entries: Record<string, object>): object =>
    Object.fromEntries(
      Object.entries(entries).map(([name, entry]) => {
        const { made_at_setup: __, ...rest } = entry as Record<string, unknown>;
        return [name, { ...rest, path: `models/${name}`, sha256: 'a'.repeat(64) }];
      }),
    );
  const profile = {
    ...local,
    name: 'toy',
    addresses: {
      temporal: { address: temporal, namespace: 'default' },
      postgres: { url: postgres },
      milvus: { address: '127.0.0.1:1' },
      mlflow: { url: 'http://127.0.0.1:1' },
      engines: [],
      artifacts: { kind: 'dir', path: join(folder, 'artifacts') },
    },
    registries: {
      ...local.registries,
      models: withDigests(local.registries.models),
      embedders: withDigests(local.registries.embedders),
    },
  };
  const path = join(folder, 'toy-profile.yaml');
  writeFileSync(path, stringify(profile));
  return path;
}

export function writeSpec(folder: string, name: string): string {
  const path = join(folder, `${name}.yaml`);
  writeFileSync(
    path,
    `api_version: exp/v1
name: ${name}
seed: 17
corpus: { sources: { docs: { kind: jsonl, path: pages.jsonl, licence: CC0-1.0, provenance: written here } } }
index: { embedder: { model: all-minilm-l6-v2, precision: int8 } }
tasks: { sources: { made: { kind: generated, from: corpus, count: 20 } }, splits: { train: 0.5, held_out: 0.5 } }
policy: { base: smollm2-135m-instruct, engine: vllm, adapter: { lora_rank: 16 } }
agent: { tools: [search, visit], max_turns: 4, max_turn_tokens: 160, observation_tokens: 256 }
curriculum:
  cold_start:
    kind: sft
    from: \${policy.base}
    trajectories: { source: demonstrations, count: 4 }
    context_length: 1536
    optimizer: { learning_rate: 2.0e-4, batch: 8, epochs: 1 }
benchmarks:
  held_out: { dataset: { split: held_out, limit: 4 }, samples: 2, after: [base, cold_start] }
`,
  );
  writeFileSync(join(folder, 'pages.jsonl'), '{"url":"https://a.example/","title":"A","text":"alpha"}\n');
  return path;
}
