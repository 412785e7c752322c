"""What a model said of one cell: its reasons, and the cell types it named.

Contract: any text can be read. The reasons are what stands before the last ``</think>``, the label is the first line
behind it. In reasoning mode a text without ``</think>`` broke off and has no label; in direct mode all of it is the
answer. A line longer than a label can be is none.
"""

from dataclasses import dataclass

from cellray.labels.spoken import LONGEST, Spoken, spoken
from cellray.reasoner.prompt import THINK, THOUGHT, Mode

_MOST_REASONS = 16_000


@dataclass(frozen=True)
class Answer:
    """Reasons, the label as it was written, and the cell types in it (more than one: a hedge)."""

    reasons: str
    label: str
    said: Spoken


def read_answer(text: str, mode: Mode) -> Answer:
    """Read what the model said; in reasoning mode ``text`` may begin inside of the thoughts."""
    before, closed, after = text.rpartition(THOUGHT)
    if not closed and mode == "reasoning":
        before, after = text, ""
    reasons = before.replace(THINK, "").replace(THOUGHT, "").strip()[:_MOST_REASONS]
    label = next((line.strip() for line in after.splitlines() if line.strip()), "")
    if len(label) > LONGEST:
        label = ""
    return Answer(reasons, label, spoken(label))
