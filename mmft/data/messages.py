"""Prompts as chat messages with one `{"type": "image"}` block per picture, the form that processors'
templates take.

Close to TRL's `prepare_multimodal_messages`, which puts the pictures themselves into the blocks; here they
stay apart.
"""

from __future__ import annotations

from typing import Any

from mmft.errors import DataError
from mmft.types import Message, Prompt

ROLES = ("system", "user", "assistant", "tool")


def to_messages(prompt: Prompt, num_images: int, system_prompt: str | None = None) -> list[Message]:
    """A row's prompt in message form: content is always a list of text and image blocks.

    Where the prompt names no place for the pictures they come first in the first user message.

    Raises:
        DataError: The prompt is no prompt, or its image blocks and pictures differ in number; the caller adds
        the row.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise DataError(f"`prompt` must be text or a list of messages; got {prompt!r}.")
    messages = [_with_blocks(message) for message in prompt]
    if not any(block.get("text", "").strip() for message in messages for block in message["content"]):
        raise DataError(f"`prompt` is empty ({prompt!r}). Give it text, or drop the row.")
    if messages[-1]["role"] not in ("user", "tool"):
        raise DataError(
            f"`prompt` must end with a message of the user; it ends with role {messages[-1]['role']!r}. "
            "Move the answer to another column."
        )
    if system_prompt and messages[0]["role"] != "system":
        messages.insert(0, _with_blocks({"role": "system", "content": system_prompt}))
    _place_images(messages, num_images)
    return messages


def prompt_text(prompt: Prompt) -> str:
    """The words of a prompt; of a conversation each message with its role."""
    if isinstance(prompt, str):
        return prompt
    lines = []
    for message in prompt:
        content = message["content"]
        blocks = [content] if isinstance(content, str) else [each.get("text") for each in content or ()]
        lines.append(f"{message['role']}: {' '.join(text for text in blocks if text)}")
    return lines[0].partition(": ")[2] if len(lines) == 1 else "\n".join(lines)


def _with_blocks(message: Any) -> Message:
    if not isinstance(message, dict) or message.get("role") not in ROLES or "content" not in message:
        raise DataError(
            f"`prompt` holds {message!r}; a message is a dict with `content` and a `role`, one of "
            f"{', '.join(ROLES)}."
        )
    content = message["content"]
    if isinstance(content, str) or content is None:
        content = [{"type": "text", "text": content or ""}]
    return {**message, "content": [_block(block) for block in content]}


def _block(block: Any) -> dict[str, str]:
    # Arrow gives every block of a list the same keys, so unused ones arrive as None.
    items = block.items() if isinstance(block, dict) else ()
    given = {key: value for key, value in items if value is not None}
    if given == {"type": "image"}:
        return given
    if given.get("type") == "text" and isinstance(given.get("text"), str):
        return {"type": "text", "text": given["text"]}
    raise DataError(
        f"`prompt` holds the block {block!r}; blocks are {{'type': 'text', 'text': ...}} and "
        "{'type': 'image'}, and the pictures themselves go to the column `image` or `images`."
    )


def _place_images(messages: list[Message], num_images: int) -> None:
    """Put image blocks into the first user message where there are none, else check how many there are."""
    num_blocks = sum(block["type"] == "image" for message in messages for block in message["content"])
    users = [message for message in messages if message["role"] == "user"]
    if num_blocks == 0 and users:
        users[0]["content"][:0] = [{"type": "image"} for _ in range(num_images)]
    elif num_blocks != num_images:
        raise DataError(
            f"`prompt` has {num_blocks} image blocks and the row has {num_images} pictures. Give one "
            "block for each picture, or none to have the pictures placed first."
        )
