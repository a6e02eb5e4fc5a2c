"""Mutate saved detectors thousands of times: each must load as it was, or be refused by ModelFileError.

    python benchmarks/faults/fuzz_model_file.py --files 12000 --out benchmarks/faults/fuzz_model_file.md

Half of the files are damaged as disks and networks do it, and their checksum is wrong. The others are forged: whoever
made them put the right checksum in. A forged file may well describe another detector that is whole; then it loads, and
the probes say that its scores are others.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import multiprocessing
import platform
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.mixture import GaussianMixture

from skl_transformaly import (
    BlockStudents,
    ConformalDetector,
    KNNDensity,
    ModelFileError,
    TimmExtractor,
    TransformalyDetector,
    load,
    save,
)
from skl_transformaly.persistence import DriftWarning

DIGEST = '"sha256":"'
SECONDS = 60  # that one file may take
MEMORY = 2**30  # bytes of address space that loading may add

# ----- taking files apart and putting them together, by the format's description alone


def split(content: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header without its document, document, and data."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    document = json.loads(header["__metadata__"].pop("document"))
    return header, document, content[8 + length :]


def join(header: dict[str, Any], document: Any, data: bytes, *, sign: bool = True) -> bytes:
    """The file with its right checksum."""
    metadata = {**header["__metadata__"], "document": document if isinstance(document, str) else dumps(document)}
    text = dumps({**header, "__metadata__": metadata} if "__metadata__" in header else header).encode()
    content = len(text).to_bytes(8, "little") + text + data
    return signed(content) if sign else content


def dumps(value: Any) -> str:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"))


def signed(content: bytes) -> bytes:
    """The content with its right checksum, where there is a place for it."""
    place = content.find(DIGEST.encode()) + len(DIGEST)
    if place < len(DIGEST):
        return content
    content = content[:place] + b"0" * 64 + content[place + 64 :]
    return content[:place] + hashlib.sha256(content).hexdigest().encode() + content[place + 64 :]


# ----- damage: the checksum is wrong afterwards


def flip_bits(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def flip_header_bits(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    changed = bytearray(content)
    end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(rng.integers(1, 4)):
        changed[rng.integers(min(end, len(changed)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def truncate(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    return content[: rng.integers(len(content))]


def append(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    return content + rng.bytes(int(rng.integers(1, 5000)))


def splice(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """A stretch from another file, or another place in this one, put in, over, or taken out."""
    source = others[rng.integers(len(others))]
    start, length = int(rng.integers(len(source))), int(rng.integers(1, 4096))
    stretch = source[start : start + length]
    place = int(rng.integers(len(content)))
    way = rng.integers(3)
    return content[:place] + (b"" if way == 0 else stretch) + content[place + (0 if way == 1 else length) :]


def halves(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    other = others[rng.integers(len(others))]
    place = int(rng.integers(min(len(content), len(other))))
    return content[:place] + other[place:]


def zero(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """A sector that was never written."""
    place = int(rng.integers(len(content))) // 512 * 512
    return content[:place] + b"\0" * 512 + content[place + 512 :]


def claim_length(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    claims = [0, 1, 7, 2**31 - 1, 2**32, 2**63 - 1, 2**64 - 1, len(content), len(content) - 8, int(rng.integers(2**40))]
    return int(claims[rng.integers(len(claims))]).to_bytes(8, "little") + content[8:]


# ----- forgeries: the checksum is right afterwards


def forge_data(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    changed = bytearray(content)
    start = 8 + int.from_bytes(content[:8], "little")
    for _ in range(rng.integers(1, 9)):
        changed[rng.integers(start, len(changed))] ^= 1 << int(rng.integers(8))
    return signed(bytes(changed))


def forge_nan(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """One array full of NaN, infinity, zeros or huge numbers."""
    header, document, data = split(content)
    names = [name for name, entry in header.items() if name != "__metadata__" and entry["dtype"] in ("F32", "F64")]
    begin, end = header[names[rng.integers(len(names))]]["data_offsets"]
    value = [np.nan, np.inf, -np.inf, 0.0, 1e38][rng.integers(5)]
    filled = np.full((end - begin) // 4, value, dtype=np.float32).tobytes()
    return join(header, document, data[:begin] + filled + data[begin + len(filled) :])


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 63, 2**31, 2**63, -(2**63), 10**19, 0.0, -1.5, 1e308, "", "x", "../../x",
    "/dev/zero", "\ud800", "é" * 100, [], [[]], {}, [0], [1, 2, 3], {"array": "x", "order": "C"}, {"object": 0},
    {"object": 10**6}, {"float": "nan"}, {"float": "inf"}, {"tuple": []}, [{"tuple": [{"dict": {}}]}],
    {"strings": ["a"]}, {"dict": {"a": {"object": 0}}}, {"random_state": {}}, "float64", "bfloat16",
    "vit_giant_patch16_gap_224", "hf-hub:timm/test_vit.r160_in1k", "local-dir:/tmp", "os.system",
    "GaussianDensity", "TransformalyDetector", "resnet50",
]  # fmt: skip


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path to each value within nested lists and dicts."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def parent(value: Any, path: tuple) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


def mutate_json(value: Any, rng: np.random.Generator) -> Any:
    """Change one value, in place: replace, delete, duplicate, add, swap with another, or nudge."""
    paths = places(value)
    path = paths[rng.integers(len(paths))]
    holder, key = parent(value, path), path[-1]
    way = rng.integers(7)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[str(key) + "_"] = holder.pop(key)
    elif way == 2 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif way == 3:
        other = paths[rng.integers(len(paths))]
        holder[key] = json.loads(dumps(parent(value, other)[other[-1]]))
    elif way == 4 and type(holder[key]) in (int, float):
        holder[key] += [1, -1, 0.5, 2**40][rng.integers(4)]
    elif way == 5 and isinstance(holder[key], dict):
        holder[key]["extra"] = VALUES[rng.integers(len(VALUES))]
    else:
        holder[key] = VALUES[rng.integers(len(VALUES))]
    return value


def forge_document(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    header, document, data = split(content)
    for _ in range(rng.integers(1, 3)):
        document = mutate_json(document, rng)
    return join(header, document, data)


def forge_document_of_another(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    header, _, data = split(content)
    return join(header, split(others[rng.integers(len(others))])[1], data)


def forge_table(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """Another dtype, shape or place of an array, sometimes one that fits the bytes that are there."""
    header, document, data = split(content)
    names = [name for name in header if name != "__metadata__"]
    for _ in range(rng.integers(1, 3)):
        entry = header[names[rng.integers(len(names))]]
        way = rng.integers(8)
        if way == 0:
            entry["dtype"] = ["F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "X", "F8_E4M3"][rng.integers(9)]
        elif way == 1:
            entry["shape"] = entry["shape"][::-1]
        elif way == 2:
            entry["shape"] = [int(np.prod(entry["shape"]))]
        elif way == 3:
            entry["shape"] = [*entry["shape"], 1]
        elif way == 4:
            entry["shape"] = [2**40, *entry["shape"]]
        elif way == 5:
            entry["data_offsets"] = [offset + [8, -8, 2**50][rng.integers(3)] for offset in entry["data_offsets"]]
        elif way == 6:
            other = header[names[rng.integers(len(names))]]
            entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
        else:
            mutate_json(entry, rng)
    return join(header, document, data)


def forge_names(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """Arrays that change names, go, or come."""
    header, document, data = split(content)
    names = [name for name in header if name != "__metadata__"]
    one, other = names[rng.integers(len(names))], names[rng.integers(len(names))]
    way = rng.integers(3)
    if way == 0:
        header[one], header[other] = header[other], header[one]
    elif way == 1:
        header[one + "x"] = header.pop(one)
    else:
        header["more"] = {"dtype": "U8", "shape": [8], "data_offsets": [len(data), len(data) + 8]}
        data += b"\0" * 8
    return join(header, document, data)


def forge_claims(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """A consistent claim of something large: architecture, image size, images, jobs, an array far beyond the file."""
    header, document, data = split(content)
    text = dumps(document)
    way = rng.integers(6)
    if way == 0:
        names = ["vit_giant_patch16_gap_224", "eva02_large_patch14_224", "convnext_xxlarge", "resnet18", "test_vit2"]
        text = text.replace('"test_vit"', f'"{names[rng.integers(len(names))]}"')
    elif way == 1:
        size = [64, 1024, 2048, 4096, 10**6, 2**31][rng.integers(6)]
        text = text.replace('"image_size":32', f'"image_size":{size}').replace("[32,32]", f"[{size},{size}]")
        text = text.replace("[3,32,32]", f"[3,{size},{size}]")
    elif way == 2:
        text = text.replace('"image_shape_":{"tuple":[20,24,3]}', f'"image_shape_":{{"tuple":[{2**20},{2**20},3]}}')
    elif way == 3:
        text = text.replace('"n_jobs":null', '"n_jobs":1000000000').replace(
            '"batch_size":32', '"batch_size":1000000000'
        )
    elif way == 4:
        name = next(name for name in header if name != "__metadata__")
        header[name]["shape"][0] *= 2**30
        header[name]["data_offsets"][1] *= 2**30
    else:
        header["huge"] = {"dtype": "F64", "shape": [2**45], "data_offsets": [len(data), len(data) + 2**48]}
    return join(header, text, data)


def forge_bomb(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """JSON that is deep, wide, long in numbers, not JSON, or says the same key twice, in the header or the document."""
    header, document, data = split(content)
    size = int(10 ** rng.uniform(1, 6))
    bombs = [
        "[" * size + "]" * size,
        '{"a":' * size + "1" + "}" * size,
        "[" + "[]," * size + "[]]",
        "[" + "0," * size + "0]",
        "1" + "0" * size,
        "1e" + "9" * min(size, 400),
        "NaN",
        "-Infinity",
        '{"a":1,"a":2}',
        '"' + "\\" * (2 * size) + '"',
        '"' + "[" * size + '"',
        '"' * (size | 1),
        "[" * size,
        "\0" * size,
    ]
    bomb = bombs[rng.integers(len(bombs))]
    mark = f"bomb{rng.integers(2**60)}"
    if rng.integers(2):
        document["metadata"] = {"x": mark}
        return join(header, dumps(document).replace(f'"{mark}"', bomb), data)
    header["more"] = mark
    length = len(join(header, document, b"", sign=False)) - 8
    text = join(header, document, b"", sign=False)[8 : 8 + length].replace(f'"{mark}"'.encode(), bomb.encode())
    return signed(len(text).to_bytes(8, "little") + text + data)


def forge_version(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    other = [b"0", b"2", b"03", b"999999999", b"99999999999", b"-1", b"x", b""][rng.integers(8)]
    header_end = 8 + int.from_bytes(content[:8], "little")
    text = content[8:header_end].replace(b'"version":"3"', b'"version":"' + other + b'"', 1)
    return signed(len(text).to_bytes(8, "little") + text + content[header_end:])


DAMAGE: list[Callable] = [flip_bits, flip_header_bits, truncate, append, splice, halves, zero, claim_length]
FORGERIES: list[Callable] = [
    forge_data, forge_nan, forge_document, forge_document, forge_document_of_another, forge_table, forge_names,
    forge_claims, forge_bomb, forge_version,
]  # fmt: skip


# ----- what becomes of a file


class Timeout(BaseException):
    """Not an Exception: nothing in between may swallow it."""


def outcome(path: Path, images: np.ndarray, expected: np.ndarray) -> str:
    """Load a file, and say what came of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            detector = load(path)
        except ModelFileError:
            return "refused"
        except Exception as error:
            return f"WRONG: {type(error).__name__}"
    warned = any(issubclass(warning.category, DriftWarning) for warning in caught)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = np.asarray(detector.score_samples(images))
    except Exception as error:
        return f"loaded, scoring raises {type(error).__name__}"
    if np.array_equal(scores, expected, equal_nan=True):
        return "same scores" if not warned else "same scores, drift warned"
    return "other scores, drift warned" if warned else "other scores within tolerance"


def seeds(folder: Path) -> list[tuple[bytes, np.ndarray]]:
    """Files to start from, small ones of every kind, and the scores of their detectors."""
    images = np.random.default_rng(0).integers(0, 256, (24, 20, 24, 3), dtype=np.uint8)
    teacher = TimmExtractor("test_vit", weights=None, image_size=32, device="cpu", precision="float32")
    students = BlockStudents(n_blocks=2, max_epochs=1, random_state=0)
    common = {"extractor": teacher, "students": students, "random_state": 0}
    detectors = [
        TransformalyDetector(**common),
        TransformalyDetector(**common, density=GaussianMixture(2), discrepancy_density=KNNDensity(n_neighbors=3)),
        TransformalyDetector(**{**common, "random_state": np.random.RandomState(0)}, feature_spaces=["pretrained"]),
        ConformalDetector(TransformalyDetector(**common), alpha=0.2, calibration=0.4, random_state=0),
    ]
    found = []
    for k, detector in enumerate(detectors):
        path = folder / f"seed{k}.tfm"
        save(detector.fit(images), path, probes=images[:1] if k % 2 else None, metadata={"files": ["a.png", "b.png"]})
        found.append((path.read_bytes(), detector.score_samples(images[:3])))
    return found


def run(files: int, seed: int, worker: int, workers: int) -> tuple[list[tuple[int, str, str]], float]:
    """Try a worker's share of the files; give number, kind and outcome of each, and the longest time."""
    warnings.simplefilter("ignore")
    images = np.random.default_rng(0).integers(0, 256, (24, 20, 24, 3), dtype=np.uint8)[:3]
    found, slowest = [], 0.0

    def give_up(*_):
        raise Timeout

    signal.signal(signal.SIGALRM, give_up)
    with tempfile.TemporaryDirectory() as folder:
        originals = seeds(Path(folder))
        path = Path(folder) / "mutant.tfm"
        contents = [content for content, _ in originals]
        for content, expected in originals:
            path.write_bytes(content)
            assert outcome(path, images, expected) == "same scores"
        # what the process has now, and what loading may add
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
        for number in range(worker, files, workers):
            rng = np.random.default_rng([seed, number])
            kinds = DAMAGE if number % 2 else FORGERIES
            mutate = kinds[rng.integers(len(kinds))]
            content, expected = originals[rng.integers(len(originals))]
            mutant = mutate(content, rng, contents)
            path.write_bytes(mutant)
            begun = time.perf_counter()
            signal.alarm(SECONDS)
            try:
                became = outcome(path, images, expected) if mutant != content else "not changed"
            except Timeout:
                became = f"WRONG: took more than {SECONDS} s"
            finally:
                signal.alarm(0)
            slowest = max(slowest, time.perf_counter() - begun)
            if mutate in DAMAGE and became not in ("refused", "not changed"):
                became = f"WRONG: {became}"
            found.append((number, mutate.__name__, became))
    return found, slowest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes among which the files are shared out")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    started = time.time()
    with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        shares = [pool.submit(run, arguments.files, arguments.seed, k, arguments.jobs) for k in range(arguments.jobs)]
        results = [share.result() for share in shares]
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    wrong = []
    for number, kind, became in sorted(entry for found, _ in results for entry in found):
        counts[kind][became] += 1
        if became.startswith("WRONG"):
            wrong.append((number, kind, became))
    report = table(arguments, counts, time.time() - started, max(slowest for _, slowest in results), wrong)
    print(report)
    if arguments.out:
        arguments.out.write_text(report + "\n")
    return int(bool(wrong))


def table(arguments, counts, seconds: float, slowest: float, wrong: list) -> str:
    """The counts as Markdown."""
    columns = sorted({found for row in counts.values() for found in row})
    order = [kind.__name__ for kind in dict.fromkeys(DAMAGE + FORGERIES) if kind.__name__ in counts]
    lines = [
        "# Mutated model files",
        "",
        f"`python benchmarks/faults/fuzz_model_file.py --files {arguments.files} --seed {arguments.seed}`; Python "
        f"{platform.python_version()}, torch {version('torch')}, timm {version('timm')}, scikit-learn "
        f"{version('scikit-learn')}, safetensors {version('safetensors')}. {seconds:.0f} s, the slowest file "
        f"{slowest:.1f} s; loading may add {MEMORY // 2**20} MiB of address space.",
        "",
        f"{arguments.files} files: {sum(row['refused'] for row in counts.values())} refused by ModelFileError, "
        f"{len(wrong)} wrong (another exception, a hang, memory beyond the limit, or damage that loads).",
        "",
        "| kind | files | " + " | ".join(columns) + " |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    for name in [*order, "all"]:
        row = counts[name] if name in counts else sum(counts.values(), collections.Counter())
        lines.append(f"| {name} | {row.total()} | " + " | ".join(str(row[column]) for column in columns) + " |")
    lines += [f"\nwrong: {number} {kind}: {found}" for number, kind, found in wrong[:50]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
