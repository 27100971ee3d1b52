"""What a chat template puts around a turn."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token by which the chat template ends an answer, or None if it has none."""
    answer = "answer"
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except MemoryError:  # says nothing of the template
        raise
    except Exception:  # noqa: BLE001  # such a template has no turn to end
        return None
    after = tokenizer(text.rpartition(answer)[2], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return next((token for token in after if token in special), None)
