"""The one exception that crosses the socket with a code."""


class TrainerError(Exception):
    """A failure with a code the caller may match on, and one sentence for a person."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def classify(error: BaseException) -> TrainerError:
    """Give any exception a code; memory exhaustion is told apart because retrying it unchanged is useless."""
    if isinstance(error, TrainerError):
        return error
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "out of memory" in text or "not enough memory" in text:
        return TrainerError("OUT_OF_MEMORY", f"{text}; lower micro_batch_tokens or turn on activation_checkpointing")
    if isinstance(error, OSError):
        return TrainerError("IO", text)
    return TrainerError("INTERNAL", text)
