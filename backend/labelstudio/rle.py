"""Label Studio's brush RLE, written from and read to the runs of a mask.

The format is @thi.ng/rle-pack over the flat RGBA image: 32 bits of length, 5 bits of word size - 1 (words of 8 bits),
four times 4 bits of run size - 1, then tokens: 1 bit "repeated", 2 bits which run size, the run length - 1 in that many
bits, and one word if repeated, else as many words as the length says. The editor reads alpha as the mask.

label_studio_sdk.converter.brush does the same over strings of "0" and "1" and the whole RGBA image: 12000x9000 px takes
it 432 MB for the image and the interpreter for minutes. Here only the mask and its runs exist; the bytes are
identical (tests compare with the SDK, benchmarks/rle.py times both).

Source: https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack (Apache 2.0), label_studio_sdk (Apache 2.0).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from backend.core.types import BoxedMask, Mask
from backend.errors import BadInputError

_RUN_BITS = (3, 4, 8, 16)
_HEADER_BITS = 32 + 5 + 4 * 4
_LONGEST_RUN = 1 << 16
_MOST_PIXELS = 1 << 30
RUNS_AT_ONCE = 1 << 18
"""Bounds what encoding keeps beside the mask: 32 bytes of bits for each run."""


def encode_mask(mask: Mask | BoxedMask, *, runs_at_once: int = RUNS_AT_ONCE) -> list[int]:
    """Return the RLE of a mask, as JSON carries it: ints in [0, 255].

    Args:
        mask: (H, W) bool with at least one pixel, or the same in its box, which takes the time of the box alone.
        runs_at_once: bounds the memory.

    Raises:
        ValueError: not a bool mask of two dimensions, without pixels, or with too many for the format (2^30).
    """
    crop = mask.crop if isinstance(mask, BoxedMask) else mask
    if crop.ndim != 2 or crop.dtype != np.bool_:
        raise ValueError(f"mask must be (H, W) bool, got {crop.shape} {crop.dtype}")
    boxed = mask if isinstance(mask, BoxedMask) else BoxedMask.of(mask)
    size = boxed.size_hw[0] * boxed.size_hw[1]
    if not 0 < size < _MOST_PIXELS:
        raise ValueError(f"mask must be (H, W) bool with 1 to {_MOST_PIXELS - 1} pixels, got {boxed.size_hw}")
    ends, is_set = _changes(boxed)
    lengths = np.diff(ends, prepend=0, append=size) * 4  # RGBA: each pixel is four equal bytes
    header = np.array([size * 4 << 21 | 7 << 16 | _run_sizes_word()], ">u8")
    pending = np.unpackbits(header.view(np.uint8))[64 - _HEADER_BITS :]
    encoded = bytearray()
    for start in range(0, lengths.size, runs_at_once):
        part = lengths[start : start + runs_at_once]
        bits = np.concatenate([pending, _token_bits(part, is_set)])
        whole = bits.size // 8 * 8
        encoded += np.packbits(bits[:whole]).tobytes()
        pending, is_set = bits[whole:], is_set ^ bool(part.size % 2)
    # The SDK always pads, with a whole zero byte where nothing is left over.
    encoded += np.packbits(pending).tobytes() if pending.size else b"\0"
    return list(encoded)


def _changes(boxed: BoxedMask) -> tuple[NDArray[np.int64], bool]:
    """Return where the flat image changes, without its ends, and whether its first pixel is set."""
    height, width = boxed.crop.shape
    if (height, width) == boxed.size_hw:
        flat = np.ascontiguousarray(boxed.crop).reshape(-1)
        return np.flatnonzero(flat[1:] != flat[:-1]) + 1, bool(flat[0])
    # An empty column beside the box: no run goes on from row to row.
    apart = np.zeros((height, width + 1), np.bool_)
    apart[:, :width] = boxed.crop
    flat = apart.reshape(-1)
    found = np.flatnonzero(np.diff(flat, prepend=False))
    row, column = np.divmod(found, width + 1)
    ends = (boxed.top + row) * boxed.size_hw[1] + boxed.left + column
    if ends.size and width == boxed.size_hw[1]:
        # What ends with a row and begins with the next one goes on.
        is_same = ends[1:] == ends[:-1]
        ends = ends[~(np.append(is_same, False) | np.append(False, is_same))]
    is_set = bool(ends.size and ends[0] == 0)
    return ends[(ends > 0) & (ends < boxed.size_hw[0] * boxed.size_hw[1])], is_set


def rle_pixels(rle: Sequence[int]) -> int:
    """Return how many pixels an RLE says that it is of; reads the header only.

    Raises:
        BadInputError: not bytes, or too few for a header.
    """
    return _read_header(_as_bytes(rle, 7))[0] // 4


def decode_mask(rle: Sequence[int], size_hw: tuple[int, int]) -> Mask:
    """Return the mask that an RLE paints: alpha over half of the region's own largest.

    The editor's strokes are anti-aliased, and other programs write 1, or a colour's own alpha, for a painted pixel.

    Args:
        rle: ints in [0, 255].
        size_hw: the image size that the RLE must be of.

    Returns:
        (H, W) bool.

    Raises:
        BadInputError: not bytes, cut short, of another length than 4 * H * W, or of another word size. Nothing of the
            mask's size is allocated before the length is known to be right.
    """
    height, width = size_hw
    data = _as_bytes(rle)
    length, run_bits = _read_header(data)
    if length != 4 * height * width:
        raise BadInputError(
            f"a brush RLE of {width} x {height} px must be of {4 * height * width} words, got {length}: the image "
            "or the region's original size was changed since, draw the region again"
        )
    mask = np.zeros(height * width, np.bool_)
    largest = 0
    for *_, alpha in _pixels_over(data, length, run_bits, 0):
        largest = max(largest, alpha)
        if largest == 255:
            break
    for start, end, _ in _pixels_over(data, length, run_bits, largest // 2):
        mask[start:end] = True
    return mask.reshape(height, width)


def _as_bytes(rle: Sequence[int], end: int | None = None) -> bytes:
    try:
        if not isinstance(rle, list | tuple):  # bytes() takes a number too: as many zeros
            raise TypeError(type(rle).__name__)
        return bytes(rle[:end])
    except (TypeError, ValueError) as error:
        raise BadInputError(
            f"a brush RLE must be a list of ints in 0..255, got {error}: save the region again"
        ) from error


def _read_header(data: bytes) -> tuple[int, tuple[int, ...]]:
    header = int.from_bytes(data[:7], "big") >> 3
    word_bits = (header >> 16 & 31) + 1
    if len(data) < 7 or word_bits != 8:
        raise BadInputError(
            f"a brush RLE must begin with a header of 7 bytes for words of 8 bits, got {len(data)} bytes, words of "
            f"{word_bits} bits: save the region again"
        )
    return header >> 21, tuple((header >> shift & 15) + 1 for shift in (12, 8, 4, 0))


def _run_sizes_word() -> int:
    word = 0
    for bits in _RUN_BITS:
        word = word << 4 | bits - 1
    return word


def _token_bits(lengths: NDArray[np.int64], is_set: bool) -> NDArray[np.uint8]:
    """Return the bits of alternating runs, the first of them set or not; a run over 65536 takes several tokens."""
    values = np.where((np.arange(lengths.size) % 2 == 0) == is_set, 255, 0)
    pieces = (lengths + _LONGEST_RUN - 1) // _LONGEST_RUN
    is_split = pieces > 1
    token_run = np.repeat(np.arange(lengths.size), pieces)
    token_lengths = np.full(token_run.size, _LONGEST_RUN, np.int64)
    token_lengths[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _LONGEST_RUN
    # As in the SDK, the rest of a long run keeps the 16-bit form even where a shorter one would do.
    size_index = np.where(is_split[token_run], 3, np.searchsorted([8, 16, 256], token_lengths, side="left"))
    run_bits = np.array(_RUN_BITS)[size_index]
    tokens = ((4 + size_index) << run_bits | token_lengths - 1) << 8 | values[token_run]
    token_bits = 3 + run_bits + 8
    left_aligned = (tokens << (32 - token_bits)).astype(">u4")
    rows = np.unpackbits(left_aligned.view(np.uint8)).reshape(-1, 32)
    kept: NDArray[np.uint8] = rows[np.arange(32) < token_bits[:, None]]
    return kept


def _pixels_over(data: bytes, length: int, run_bits: Sequence[int], threshold: int) -> Iterator[tuple[int, int, int]]:
    """Yield pixel ranges [start, end) whose alpha byte, the fourth of a pixel, is over a threshold, with the alpha."""
    bit, bits_in_data, index = _HEADER_BITS, len(data) * 8, 0
    padded = data + bytes(8)
    while index < length:
        byte = bit >> 3
        window = int.from_bytes(padded[byte : byte + 8], "big") << (bit & 7) & 0xFFFFFFFFFFFFFFFF
        size = run_bits[window >> 61 & 3]
        count = (window >> (61 - size) & (1 << size) - 1) + 1
        end = min(index + count, length)
        if window >> 63:
            bit += 11 + size
            if bit > bits_in_data:
                break
            if (alpha := window >> (53 - size) & 255) > threshold:
                yield index >> 2, end >> 2, alpha
        else:
            bit += 3 + size
            words = _words(data, bit, count)
            bit += 8 * count
            if bit > bits_in_data:
                break
            for position in range((3 - index) % 4, end - index, 4):
                if words[position] > threshold:
                    yield index + position >> 2, (index + position >> 2) + 1, words[position]
        index = end
    if index < length:
        raise BadInputError(
            f"a brush RLE must hold {length} words, got {len(data)} bytes that end after {index} words: the region was "
            "cut short, save it again"
        )


def _words(data: bytes, bit: int, count: int) -> bytes:
    end = bit + 8 * count
    number = int.from_bytes(data[bit >> 3 : (end + 7) >> 3], "big") >> (-end % 8)
    return (number & (1 << 8 * count) - 1).to_bytes(count, "big")
