"""Tiny models that one can talk to: any answer will do, if it is the right one."""

from __future__ import annotations

from pathlib import Path

from tests.folders import write_folder

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_talker(folder: Path, context: int = 2048) -> Path:
    """A model folder with a chat template; each byte is a token."""
    write_folder(folder, max_position_embeddings=context)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder
