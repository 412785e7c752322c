"""Who reasons: a model folder that an engine is started for here, a bundled model, or a served app by its URL.

Contract: what is wrong with it is a ``SettingError`` before any work; whether a served app is up is not asked.
"""

from urllib.parse import urlsplit

from cellray import storage
from cellray.errors import SettingError
from cellray.puzzles.engine import check_model, check_vllm, locate


def is_url(reasoner: str) -> bool:
    """Whether ``reasoner`` names a served app instead of a folder."""
    return reasoner.startswith(("http://", "https://"))


def check(reasoner: str) -> None:
    """Refuse what cannot reason, without reading weights.

    Raises
    ------
    SettingError
        If the folder cannot be used, vLLM is not installed, or the URL is none of a served app.
    """
    if not is_url(reasoner):
        check_model(reasoner)
        check_vllm()
        return
    parts = urlsplit(reasoner)
    if not parts.hostname or parts.username or parts.query or parts.fragment:
        msg = f"model {reasoner!r}: give http(s)://host[:port] of a served app; its key belongs into $CELLRAY_API_KEY"
        raise SettingError(msg)


def identify(reasoner: str) -> str:
    """Check a reasoner; returns what its answers are a function of: the hash of the model's folder, or the URL."""
    check(reasoner)
    return reasoner if is_url(reasoner) else storage.content_hash(locate(reasoner))
