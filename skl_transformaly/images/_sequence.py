"""Images of any origin as one sequence of arrays, decoded when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from joblib import cpu_count

from skl_transformaly.images._ahead import ahead
from skl_transformaly.images._pixels import eight_bits, least_side
from skl_transformaly.images._thumbnails import has_colour, thumbnail_of
from skl_transformaly.images._values import SKIP_ADVICE, ImageError, colour_warning, faint_warning, faintness
from skl_transformaly.utils._warnings import warn_user

__all__ = ["DIGEST_SIZE", "Images"]

# Bytes of the digest by which a picture is recognised.
DIGEST_SIZE = 16

# More threads would only take memory, since arithmetic is slower than decoding on this many.
_MOST_THREADS = 8


class Images(Sequence):
    """Images of any origin as a sequence of ``(H, W, C)`` arrays, decoded when they are asked for.

    ``decode(i)`` returns image `i`, with 1, 3 or 4 channels: uint8 or uint16 for integers over their full range, else
    floating point in 0-1. If the images are one array, that is the `stack`, and batches are slices of it. ``name(i)``
    names image `i` in messages. For image files, ``shape(i)`` reads height and width of image `i` from its header;
    `decode` then takes `at_least`, see :func:`decode_file`, and may be called on several threads at a time.

    With ``on_error="skip"``, an image that cannot be decoded is left out of the batches, with a warning, and its
    message is kept in `unreadable`. `digests` holds a digest of the pixels of each image that was in a batch so far,
    which is the same for the same pixels in any form. `thumbnails`, if set to a dict, holds small versions likewise.
    With `warn_of_colour`, for images that are compared with grey ones, a warning tells of those that have colour.
    """

    def __init__(
        self,
        length: int,
        decode: Callable[..., np.ndarray],
        *,
        stack: np.ndarray | None = None,
        name: Callable[[int], str] | None = None,
        on_error: str = "raise",
        shape: Callable[[int], tuple[int, int]] | None = None,
    ):
        self._length = length
        self._decode = decode
        self._name = name or "image {}".format
        self._shape = shape
        self._at_least: int | None = None
        self._pieces: list[Images] = []  # that were joined
        self.stack = stack
        self.on_error = on_error
        self.unreadable: dict[int, str] = {}
        self.digests: dict[int, bytes] = {}
        self.thumbnails: dict[int, np.ndarray] | None = None
        self.warn_of_colour = False
        self._coloured: set[int] = set()
        self._warned = 0
        # kinds of faint images by position, and which kinds were warned of, here or where these images came from
        self._faint: dict[int, tuple[str, float]] = {}
        self._told: set[str] = set()

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(H, W, C) if all images are one array, else None."""
        return None if self.stack is None else self.stack.shape[1:]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        i %= len(self)
        try:
            return self._one(i)
        except ImageError as error:
            raise ImageError(f"{self._name(i)}: {error}") from error
        except MemoryError as error:
            raise MemoryError(f"{self._name(i)}: there is not enough memory to decode it.") from error

    def name(self, i: int) -> str:
        """Return what messages call image `i`."""
        return self._name(int(i))

    def size(self, i: int, pixels: np.ndarray) -> tuple[int, int]:
        """Return height and width of image `i`, whose `pixels` in a batch may be fewer."""
        if self._at_least is None or self._shape is None:
            return pixels.shape[0], pixels.shape[1]
        return self._shape(int(i))

    def reduced(self, size: Sequence[int] | None) -> Images:
        """Return the same images, of which large JPEGs are decoded at a part of their size.

        `size` is the height and width to which they are resized later; None if that is not known. No side becomes
        shorter than 3 times the longer of the two, or than 672 pixels.
        """
        at_least = None if size is None or self._shape is None else least_side(size)
        if at_least == self._at_least:
            return self
        images = self.take(range(len(self)))
        images._at_least = at_least
        return images

    def take(self, positions: Sequence[int] | np.ndarray) -> Images:
        """Return the images at `positions` as images of their own, still decoded only when they are asked for."""
        positions = np.asarray(positions, dtype=np.intp)
        if positions.ndim != 1 or (positions < -len(self)).any() or (positions >= len(self)).any():
            raise IndexError(f"positions must be a sequence of places among {len(self)} images.")
        positions = positions % len(self) if len(self) else positions
        whole = np.array_equal(positions, np.arange(len(self)))  # of which no copy is needed
        taken = Images(
            len(positions),
            partial(_elsewhere, self._decode, positions),
            stack=self.stack if self.stack is None or whole else self.stack[positions],
            name=partial(_elsewhere, self._name, positions),
            on_error=self.on_error,
            shape=None if self._shape is None else partial(_elsewhere, self._shape, positions),
        )
        taken._at_least = self._at_least
        taken._told = self._told
        places = enumerate(positions.tolist())
        taken.unreadable = {place: self.unreadable[i] for place, i in places if i in self.unreadable}
        taken._warned = len(taken.unreadable) if self._warned else 0  # of which a pass over all has warned
        taken.warn_of_colour = self.warn_of_colour
        return taken

    @classmethod
    def joined(cls, parts: Sequence[Images]) -> Images:
        """Return the images of several sequences as one, still decoded only when they are asked for."""
        # flat, however often more are joined to what was joined: each level would be a call within a call
        parts = [piece for part in parts for piece in (part._pieces or [part])]
        starts = np.cumsum([0, *map(len, parts)])
        shapes = [part._shape for part in parts if part._shape is not None]
        files = len(shapes) == len(parts)
        joined = cls(
            int(starts[-1]),
            partial(_in_part, [part._one for part in parts], starts),
            name=partial(_in_part, [part._name for part in parts], starts),
            on_error="skip" if any(part.on_error == "skip" for part in parts) else "raise",  # arrays have "raise"
            shape=partial(_in_part, shapes, starts) if files else None,
        )
        # or `reduced` would return a copy, which would get the digests of the images in batches
        joined._at_least = parts[-1]._at_least if files else None
        joined._pieces = parts
        return joined

    def _one(self, i: int, at_least: int | None = None) -> np.ndarray:
        """Decode image `i`, with a side of at least `at_least` pixels, or that of this sequence."""
        if self.stack is not None:
            return self.stack[i]
        at_least = self._at_least if at_least is None else at_least
        return self._decode(i) if at_least is None else self._decode(i, at_least=at_least)

    def batches(self, batch_size: int, *, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray | list[np.ndarray]]]:
        """Yield ``(positions, pixels)`` from position `start` on, at most `batch_size` images at a time.

        `pixels` is a slice of the stack, or a list of arrays whose sizes may differ. Image files are decoded ahead, on
        threads, while the caller works on a batch. With ``on_error="skip"`` unreadable images are in no batch, and the
        end of the first whole pass warns of them, of images that use the lowest part of their range alone, and of
        colour if that is wanted.
        """
        yield from self._slices(batch_size, start) if self.stack is not None else self._lists(batch_size, start)
        if len(self.unreadable) > self._warned:
            messages = list(self.unreadable.values())[self._warned :]
            self._warned = len(self.unreadable)
            shown = [message.removesuffix(SKIP_ADVICE) for message in messages[:3]] + ["..."] * (len(messages) > 3)
            warn_user(
                f"{len(messages)} of {len(self)} images could not be read: they are left out, and scored NaN. "
                + "; ".join(shown)
            )
        self._warn_of_faint()
        if self._coloured and "colour" not in self._told:
            self._told.add("colour")
            warn_user(colour_warning([self.name(i) for i in sorted(self._coloured)], len(self)))

    def _slices(self, batch_size: int, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        assert self.stack is not None
        for first in range(start, len(self), batch_size):
            pixels = self.stack[first : first + batch_size]
            positions = np.arange(first, first + len(pixels))
            for i, image in zip(positions.tolist(), pixels):
                self._recognise(i, image)
            yield positions, pixels

    def _lists(self, batch_size: int, start: int) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        with closing(self._results(start)) as results:
            # unreadable images count, so that batches begin at the same positions in each pass
            for _, batch in groupby(results, key=lambda result: (result[0] - start) // batch_size):
                kept, pixels = [], []
                for i, result in batch:
                    try:
                        pixels.append(result())
                        kept.append(i)
                    except ImageError as error:
                        if self.on_error != "skip":
                            raise
                        self.unreadable[i] = str(error)
                if kept:
                    yield np.array(kept), pixels

    def _results(self, start: int) -> Generator[tuple[int, Callable[[], np.ndarray]], None, None]:
        """Yield positions from `start` on, but those known to be unreadable, and callables that return the images."""
        positions = [i for i in range(start, len(self)) if i not in self.unreadable]
        if self._shape is not None and len(positions) > 1:
            yield from ahead(self._read, positions, threads=min(_MOST_THREADS, cpu_count()))
        else:
            for i in positions:
                yield i, partial(self._read, i)

    def _read(self, i: int) -> np.ndarray:
        image = self[i]
        self._recognise(i, image)
        return image

    def _recognise(self, i: int, image: np.ndarray) -> None:
        if self.thumbnails is not None and i not in self.thumbnails:
            self.thumbnails[i] = thumbnail_of(image)
        if i not in self.digests:
            faint = faintness(image)
            if faint is not None:
                self._faint[i] = faint
            if self.warn_of_colour and has_colour(image):
                self._coloured.add(i)
            self.digests[i] = _digest(image)

    def _warn_of_faint(self) -> None:
        for kind in sorted({kind for kind, _ in self._faint.values()} - self._told):
            self._told.add(kind)
            largest = {i: value for i, (found, value) in sorted(self._faint.items()) if found == kind}
            warn_user(faint_warning(kind, [self.name(i) for i in largest], len(self), max(largest.values())))

    def groups(self) -> np.ndarray:
        """Number images by their pixels: duplicates have the same number, unreadable images one each."""
        numbers: dict[Any, int] = {}
        return np.array([numbers.setdefault(self.digests.get(i, i), len(numbers)) for i in range(len(self))])


# Functions of modules, not closures, so that images can be pickled for other processes.


def _elsewhere(of: Callable[..., Any], positions: np.ndarray, i: int, **options: Any) -> Any:
    return of(int(positions[i]), **options)


def _in_part(functions: Sequence[Callable[..., Any]], starts: np.ndarray, i: int, **options: Any) -> Any:
    part = int(np.searchsorted(starts, i, side="right")) - 1
    return functions[part](i - int(starts[part]), **options)


def _digest(image: np.ndarray) -> bytes:
    image = eight_bits(image)
    digest = hashlib.blake2b(f"{image.shape} {image.dtype.str}".encode(), digest_size=DIGEST_SIZE)
    digest.update(np.ascontiguousarray(image).reshape(-1).view(np.uint8).data)
    return digest.digest()
