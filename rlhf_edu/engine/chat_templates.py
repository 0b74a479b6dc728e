"""Chat templates, which are programs of strangers: what they write, within a budget."""

import contextlib
import functools
import json
import re
import sys
import time
from collections.abc import Iterator
from datetime import date
from inspect import signature
from types import FrameType
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

# A chat template is a program of a stranger's: what it may take for one conversation.
TEMPLATE_SECONDS = 1.0  # of computing; real ones take a thousandth


TEMPLATE_LETTERS = 100_000  # of its own, beside the messages


USE_PLAIN = "choose --prompt-format plain, or a tokenizer with another template"


# Today's date, as a template asks for it: strftime_now("%d %b %Y").
STRFTIME = re.compile(r"""strftime_now\s*\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")


def fix_day(tokenizer: PreTrainedTokenizerBase, day: str | None = None) -> str | None:
    """Make a chat template that writes today's date write the same day from now on.

    Without it the prompts of tomorrow are others than those of today. The tokenizer's files
    remember the day; one that has a day keeps it.

    Args:
        day: such as 2025-11-27; None: today.

    Returns:
        The day, or None if no chat template writes one.
    """
    if not tokenizer.chat_template or not STRFTIME.search(str(tokenizer.get_chat_template())):
        return None
    today = date.today().isoformat()
    return tokenizer.init_kwargs.setdefault("template_day", day or today)


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template, with its day written out."""
    template, day = tokenizer.get_chat_template(), fix_day(tokenizer)
    if day is not None:
        first = date.fromisoformat(day)
        template = STRFTIME.sub(lambda m: json.dumps(first.strftime(m[1] or m[2])), template)
    if "strftime_now(" in template:
        raise ValueError("its date cannot be read off, so prompts would change with the day")
    return template


def _apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]
) -> list[int]:
    """Token ids of a conversation up to the answer."""
    options = {"add_generation_prompt": True}
    text = _render(tokenizer, messages, **options)
    own = len(text) - 10 * sum(len(message["content"]) for message in messages)
    if not text or own > TEMPLATE_LETTERS:
        what = f"{len(text):,} letters" if text else "nothing"
        raise ValueError(f"the chat template writes {what} for a conversation; {USE_PLAIN}")
    if "sanitize_control_tokens" in signature(tokenizer.apply_chat_template).parameters:
        # "<|im_end|>" in a message is ten letters, and ends nothing.
        options["sanitize_control_tokens"] = True
    else:
        _refuse_control_tokens(tokenizer, messages)
    options |= {"chat_template": _template(tokenizer), "return_dict": False}
    return tokenizer.apply_chat_template(messages, **options)


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: Any
) -> str:
    """What the chat template makes of a conversation; whatever goes wrong is one line."""
    try:
        with _at_most(TEMPLATE_SECONDS):
            options |= {"chat_template": _template(tokenizer), "tokenize": False}
            return tokenizer.apply_chat_template(messages, **options)
    except TemplateError as error:
        verb, what, advice = "refuses", str(error), "leave such rows out, or " + USE_PLAIN
    except Exception as error:  # a template can raise anything
        verb, what, advice = "fails on", f"{type(error).__name__}: {error}", USE_PLAIN
    roles, what = ", ".join(message["role"] for message in messages), what.partition("\n")[0]
    raise ValueError(f"the chat template {verb} a conversation of {roles}: {what}; {advice}")


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Stop a chat template that computes for longer, be it in loops or on ever longer strings."""
    # Jinja limits one loop, not loops in loops. Looking at every line works on every platform and
    # in every thread; computing time, so that a busy machine stops nobody.
    end, before = time.thread_time() + seconds, sys.gettrace()

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > end:
            raise TimeoutError(f"it takes more than {seconds:g} s")
        return look if frame.f_code.co_filename == "<template>" else None

    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


def _refuse_control_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]
) -> None:
    for message in messages:
        for token in tokenizer.all_special_tokens:
            if token in message["content"]:
                raise ValueError(
                    f"a message holds the control token {token}; leave it out, or install "
                    "transformers 5.23 or newer, which can read it as letters"
                )


@functools.lru_cache(maxsize=8)
def _end_of_turn(tokenizer: PreTrainedTokenizerBase, template: str) -> int | None:
    """The token that a chat template writes behind an assistant's turn, or None."""
    if not template:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "«answer»"}]
    try:
        _, said, after = _render(tokenizer, turns).rpartition("«answer»")
    except ValueError:  # some know no such turn
        return None
    tokens = {str(token): id for id, token in tokenizer.added_tokens_decoder.items()}
    found = [token for token in tokens if said and after.strip().startswith(token)]
    return tokens[max(found, key=len)] if found else None
