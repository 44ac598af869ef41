"""Token-level training: ids, mask, behaviour logprobs and advantages in; weights and metrics out.

It knows no algorithm by name, no prompt and no chat template: those live in the TypeScript side,
and reach this package as numbers in a Parquet batch and a loss specification.
"""
