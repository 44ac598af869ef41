import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { joinSafetensors } from '../../activities/adapters/safetensors.ts';
import { python } from '../../services/home.ts';
import { temporaryFolder } from '../temporary-folder.ts';

const inPython = (code: string): string => execFileSync(python(), ['-c', code], { encoding: 'utf8' }).trim();

test('shards become one file that safetensors reads, with the tensors of all of them', async () => {
  const folder = temporaryFolder('exp-safetensors-');
  inPython(`
import numpy as np; from safetensors.numpy import save_file
save_file({"ä.weight": np.arange(6, dtype=np.float16).reshape(2, 3), "one": np.array([1], dtype=np.int8)}, "${folder}/1", metadata={"x": "y"})
save_file({"b": np.full(5, 2.5, dtype=np.float32)}, "${folder}/2")`);

  await joinSafetensors([join(folder, '1'), join(folder, '2')], join(folder, 'joined'));

  const read = `
from safetensors import safe_open
f = safe_open("${folder}/joined", framework="np")
print(f.metadata(), sorted((name, str(f.get_tensor(name).dtype), f.get_tensor(name).tolist()) for name in f.keys()))`;
  expect(inPython(read)).toBe(
    "{'format': 'pt'} [('b', 'float32', [2.5, 2.5, 2.5, 2.5, 2.5]), ('one', 'int8', [1]), ('ä.weight', 'float16', [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])]",
  );
});

test('a file that is cut off, or is none, or repeats a name is refused', async () => {
  const folder = temporaryFolder('exp-safetensors-');
  const [whole, cut, none, out] = ['whole', 'cut', 'none', 'out'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
    string,
  ];
  inPython(`
import numpy as np; from safetensors.numpy import save_file
save_file({"a": np.ones(9)}, "${whole}"); open("${cut}", "wb").write(open("${whole}", "rb").read()[:-1])`);
  writeFileSync(none, 'no safetensors at all');
  await expect(joinSafetensors([cut], out)).rejects.toThrow(/cut: CHECKPOINT: the file is cut off/);
  await expect(joinSafetensors([none], out)).rejects.toThrow(/no safetensors file/);
  await expect(joinSafetensors([whole, whole], out)).rejects.toThrow(/a stands in another file too/);
});
