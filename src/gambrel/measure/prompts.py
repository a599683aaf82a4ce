"""Prompts that are exactly as long as asked and never alike, without a tokenizer of the model.

A prompt that repeats is answered from the server's prefix cache and measures nothing; one whose length is guessed
measures something else. Common short English words after a space are one token each in nearly every vocabulary;
which of them truly are is asked of the server itself, by its usage counts (:func:`certify`), and what its chat
template adds comes out of the same counts. Then a prompt of n tokens is n minus the template's words.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

from gambrel.core.errors import EndpointError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["WORDS", "Prompts", "certify"]

_TEXT = (
    "time people way water world life day part number place work week case point home company group problem fact "
    "hand eye year child man woman government system program question night study book word business issue side "
    "kind head house service friend father power hour game line end member law car city community name president "
    "team minute idea body information back parent face others level office door health person art war history "
    "party result change morning reason research girl guy moment air teacher force education foot boy age policy "
    "music market sense nation plan college interest death experience effect use class control field development "
    "role effort rate heart drug show "
)
WORDS: Final = tuple(dict.fromkeys(_TEXT.split()))
UNIQUE_WORDS: Final = 12  # the first words spell the number of the prompt: 116**12 of them, about 82 bits
STRIDE: Final = 2_147_483_647  # a prime above every count of words, so multiples of it visit every spelling once


@dataclass(frozen=True)
class Prompts:
    """A maker of prompts.

    Attributes:
        words: each is one token after a space.
        template_tokens: tokens that are not words: chat template, begin-of-text, and the first word's lack of a space.
        seed: same seed, same prompts.
        shared_tokens: so many tokens at the start are the same in all prompts (an explicit prefix-cache load).
        verified: whether the server's counts confirmed the two above.
    """

    words: tuple[str, ...] = WORDS
    template_tokens: int = 0
    seed: int = 0
    shared_tokens: int = 0
    verified: bool = False

    @cached_property
    def _body(self) -> tuple[str, list[int]]:
        """A long text of random words, and where each word ends: prompts are cut from it, not composed."""
        rng = random.Random(f"body {self.seed}")  # noqa: S311 - test text, not secrets
        chosen = rng.choices(self.words, k=1 << 14)
        ends, at = [0], 0
        for word in chosen:
            at += len(word) + 1
            ends.append(at)
        return " " + " ".join(chosen), ends

    def _cut(self, n: int) -> str:
        text, ends = self._body
        whole, rest = divmod(n, len(ends) - 1)
        return text * whole + text[: ends[rest]]

    @property
    def shortest(self) -> int:
        """The least tokens a prompt can have."""
        return self.template_tokens + self.shared_tokens + 1

    def text(self, tokens: int, index: int) -> str:
        """The prompt of ``tokens`` tokens, template included, number ``index``; different for each index.

        A prompt shorter than ``shortest`` is given that length. With k < ``UNIQUE_WORDS`` words after its first there
        are ``len(words) ** k`` prompts before the first comes again.
        """
        rest = max(tokens - self.template_tokens - self.shared_tokens - 1, 0)
        spelt, base = min(rest, UNIQUE_WORDS), len(self.words)
        number = (index * STRIDE + self.seed) % base**spelt
        letters = [self.words[0]]  # always the same first word: without a space before it, some are two tokens
        for _ in range(spelt):  # the digit that changes most comes first, before any block of a cache is full
            number, digit = divmod(number, base)
            letters.append(self.words[digit])
        own = " ".join(letters) + self._cut(rest - spelt)
        if not self.shared_tokens:
            return own
        return self.words[0] + self._cut(self.shared_tokens - 1) + " " + own

    def corrected(self, asked: Sequence[int], counted: Sequence[int]) -> Prompts:
        """The same with the template's size set right, after the server counted prompts otherwise than asked."""
        misses = sorted(c - a for a, c in zip(asked, counted, strict=True))
        miss = misses[len(misses) // 2] if misses else 0
        return replace(self, template_tokens=self.template_tokens + miss, verified=True)


async def certify(
    count: Callable[[str], Awaitable[int | None]], prompts: Prompts, *, longest: int = 1 << 30
) -> Prompts:
    """Find out by the server's own counts which words are one token, and what the template adds.

    ``count`` sends a prompt and answers the server's ``usage.prompt_tokens``. Words that are not one token are found
    by halving, about two requests each. Where the server does not count, the prompts stay unverified. ``longest``
    is the number of tokens a prompt may have.

    Raises:
        EndpointError: fewer than sixteen of the words are one token each, so lengths cannot be exact.
    """
    words = prompts.words[: max(16, (longest - 64) // 2)]
    once = await count(" ".join(words))
    if once is None:
        return prompts
    # Twice the words less once the words: the first word stands once without its space in both.
    twice = await count(" ".join([*words, *words]))
    if twice is None:
        return prompts
    template = once - (twice - once)
    if twice - once == len(words):
        return replace(prompts, words=words, template_tokens=template, verified=True)

    async def sound(part: tuple[str, ...]) -> list[str]:
        # A pad of the first word, which every count shares, keeps the part away from the template.
        found = await count(" ".join([words[0], *part]))
        base = await pad()
        if found is not None and found - base == len(part):
            return list(part)
        if len(part) == 1:
            return []
        middle = len(part) // 2
        return [*await sound(part[:middle]), *await sound(part[middle:])]

    pads: list[int] = []

    async def pad() -> int:
        if not pads:
            pads.append(await count(words[0]) or 0)
        return pads[0]

    good = tuple(await sound(words))
    if len(good) < 16:
        raise EndpointError(
            f"only {len(good)} of {len(words)} words are one token each on this server, so prompts cannot be made "
            "exactly as long as asked; give prompts of your own"
        )
    alone = await count(" ".join(good))
    return replace(prompts, words=good, template_tokens=(alone or 0) - len(good), verified=True)
