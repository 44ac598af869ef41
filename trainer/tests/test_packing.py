"""Sequences that share a row: equal to each of them alone, and refused where a model cannot keep them apart."""

from collections.abc import Callable

import pytest
import torch
from conftest import gradient, make_policy, make_rows
from transformers import Lfm2Config, Lfm2ForCausalLM, MistralConfig, MistralForCausalLM

from exp_trainer.attention import PACKED_ATTENTION, refuse_contamination
from exp_trainer.errors import TrainerError
from exp_trainer.loss import parse_loss_spec
from exp_trainer.policy import Policy

WHOLE = 10_000
TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "attn_implementation": PACKED_ATTENTION,
}


def padded_logits(policy: Policy, rows: list[dict]) -> torch.Tensor:
    """The same sequences through transformers' own way: right-padded, with an attention mask."""
    longest = max(len(row["token_ids"]) for row in rows)
    token_ids_BT = torch.zeros(len(rows), longest, dtype=torch.int64)
    real_BT = torch.zeros(len(rows), longest, dtype=torch.int64)
    for index, row in enumerate(rows):
        token_ids_BT[index, : len(row["token_ids"])] = torch.tensor(row["token_ids"])
        real_BT[index, : len(row["token_ids"])] = 1
    return policy.model(input_ids=token_ids_BT, attention_mask=real_BT).logits


def test_packed_hidden_states_give_the_padded_logits(policy: Policy) -> None:
    rows = make_rows(6)
    padded_BTV = padded_logits(policy, rows)
    lengths = [len(row["token_ids"]) for row in rows]
    packed_TH = policy.hidden_states(torch.tensor([token for row in rows for token in row["token_ids"]]), lengths)
    for index, logits_TV in enumerate((packed_TH @ policy.head_VH.T).split(lengths)):
        torch.testing.assert_close(logits_TV, padded_BTV[index, : lengths[index]], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
def test_the_gradient_of_packed_sequences_is_that_of_padded_ones(
    base_dir: object, sequences_of: Callable, adapter: bool
) -> None:
    policy = make_policy(base_dir, adapter=adapter)  # type: ignore[arg-type]
    rows = make_rows(6, temperature=1.0, weight=1.0)
    packed = gradient(policy, sequences_of(rows), parse_loss_spec({"kind": "cross_entropy"}), WHOLE)
    log_probability_BTV = torch.log_softmax(padded_logits(policy, rows), -1)
    losses = [
        -log_probability_BTV[index, position - 1, row["token_ids"][position]]
        for index, row in enumerate(rows)
        for position, sampled in enumerate(row["mask"])
        if sampled
    ]
    parts = torch.autograd.grad(torch.stack(losses).mean(), list(policy.parameters.values()))
    expected = torch.cat([part.flatten() for part in parts])
    assert (packed - expected).norm() < 1e-6 * expected.norm()


def test_a_sequence_is_computed_alike_whatever_lies_beside_it(policy: Policy) -> None:
    own, others = torch.arange(20), [torch.arange(50, 67), torch.arange(30, 41)]
    with torch.no_grad():
        alone_TH = policy.hidden_states(own, [20])
        between_TH = policy.hidden_states(torch.cat([others[0], own, others[1]]), [17, 20, 11])[17:37]
    torch.testing.assert_close(between_TH, alone_TH, rtol=1e-5, atol=1e-5)


def test_a_model_that_mixes_the_sequences_of_a_row_is_refused(policy: Policy) -> None:
    """Lfm2's short convolutions run over a boundary without any error."""
    refuse_contamination(policy.model.get_decoder())
    mixing = Lfm2ForCausalLM(Lfm2Config(**TINY, layer_types=["conv", "full_attention"])).eval()
    with pytest.raises(TrainerError, match="mixes sequences") as caught:
        refuse_contamination(mixing.get_decoder())
    assert caught.value.code == "MODEL_UNSUPPORTED"


def test_a_sequence_longer_than_the_models_window_is_refused() -> None:
    model = MistralForCausalLM(MistralConfig(**TINY, sliding_window=8)).eval()
    policy = Policy(model, None, dtype=torch.float32, seed=0)
    policy.hidden_states(torch.arange(14), [8, 6])
    with pytest.raises(TrainerError, match="longer than the window of 8"):
        policy.hidden_states(torch.arange(14), [9, 5])
