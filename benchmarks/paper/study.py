"""One data set under one setting: the teacher's run, the students of each class and seed, the rivals; rows in a CSV."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import loaders
import numpy as np
import published
import quirks
import spaces
from recording import Recording, join
from rivals import RIVALS, TRAINED_RIVALS
from rivals._tuning import capture
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from skl_transformaly import BlockStudents, TimmExtractor, TransformalyDetector, __version__, datasets
from skl_transformaly.images._images import Images
from skl_transformaly.teacher._architecture import CLASS_HEAD
from skl_transformaly.teacher._weights import create_model, state_sha256
from skl_transformaly.utils._cache import Cache

FIELDS = ["dataset", "setting", "class", "seed", "method", "auroc", "seconds", "key"]

# Parameters of students and detectors that change no figure.
ELSEWHERE = ("extractor", "verbose", "n_jobs", "checkpoint", "memory", "storage")
# Parameters that students had when the first rows were computed, so that their keys stay what they are.
EARLIER = {
    "cache": "auto",
    "cache_size": 512,
    "early_stopping": False,
    "n_iter_no_change": 3,
    "validation_fraction": 0.1,
}

# The row that a group ends with, where it is not named as the group is.
MARKS = {"densities": next(iter(spaces.DENSITIES)), "students": "Transformaly"}

# What needs no gradient takes the images as the teacher saw them; the others need pixels.
PIXEL_RIVALS = ("OC-SVM (pixels)", "Deep SVDD", "MSAD")
TUNING_RIVALS = ("PANDA", "MSAD")
SEEDED_RIVALS = (*TRAINED_RIVALS, "IsolationForest")

# Images, and the extractor to be given them.
Source = tuple[Images, Any]


class Rows:
    """The CSV of results: what is done already, and what is added.

    A row carries a key made of all that its figure depends on, so a changed option never finds a stale one.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, str]] = []
        if path.exists():
            whole = path.read_bytes().rpartition(b"\n")[0]  # a stopped run leaves its last row half written
            self.rows = list(csv.DictReader(whole.decode().splitlines()))

    def find(self, key: str | None, **fields: Any) -> list[dict[str, str]]:
        """Rows of this key, or of any, whose `fields` have these values."""
        wanted = {name: str(value) for name, value in fields.items()} | ({} if key is None else {"key": key})
        return [row for row in self.rows if wanted.items() <= row.items()]

    def add(self, **row: Any) -> None:
        """Write a row through to the disk."""
        text = {field: str(row[field]) for field in FIELDS}
        with self.path.open("a+b") as file:  # other commands may add to it, too
            file.seek(0)
            content = file.read()
            if not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
            with io.TextIOWrapper(file, encoding="utf-8", newline="") as lines:
                writer = csv.DictWriter(lines, FIELDS)
                if b"\n" not in content:
                    writer.writeheader()
                writer.writerow(text)
        self.rows.append(text)


class Study:
    """A data set, a teacher's recorded run over it, and what is computed from that."""

    def __init__(self, options: argparse.Namespace, record: bool = True):
        self.options = options
        data = options.dataset or loaders.load(
            options.data, options.root, download=options.download, random_state=options.split_seed
        )
        self.data = subsample(data, options.samples, options.test_samples)
        image_size = 384 if "384px" in options.quirks else options.image_size
        extractor = TimmExtractor(
            options.teacher,
            weights=options.weights,
            image_size=image_size,
            interpolation=options.interpolation,
            batch_size=options.batch_size,
            device=options.device,
            precision="float32" if options.paper and options.precision == "auto" else options.precision,
        )
        self.live = extractor.fit(self.data.X_train)
        if options.n_blocks > len(self.live.blocks_):
            options.n_blocks = len(self.live.blocks_)
            print(f"# {options.teacher} has {options.n_blocks} blocks: each gets a student.", file=sys.stderr)
        self.n_train = len(self.data.y_train)
        self.images = join(self.data.X_train, self.data.X_test)
        self._record = record
        self._source: Source | None = None
        self._test_source: Source | None = None
        self._views: dict[int, dict] = {}
        images, own = pixels_sha256(self.images), self.live.identity()
        self._identity = {"images": images, "teacher": own}
        self.rows = Rows(options.out / "rows.csv")
        self.features = options.out / "features"
        self.features.mkdir(exist_ok=True)
        # Not the embeddings themselves, nor what rounds them: a study goes on on another machine.
        teacher = {k: v for k, v in own.items() if k not in ("device", "processor")}
        self.base = {
            "images": images,
            "teacher": {**teacher, "weights": weights_sha256(options.teacher, options.weights)},
            "labels": hashlib.sha256(self.data.y_train.tobytes() + b"test" + self.data.y_test.tobytes()).hexdigest(),
            "version": __version__,
            "one-component-fewer": "one-component-fewer" in options.quirks,
        }

    @cached_property
    def recording(self) -> Recording:
        """Embeddings of all images, found again by content.

        With its rows at hand, a table is printed without a run of the teacher.
        """
        z = Cache(str(self.options.out / "memory"))("embeddings", self._identity, self._embeddings)
        return Recording(self.live, self.images, False, self.options.out, embeddings=z)

    @property
    def z_p(self) -> np.ndarray:
        """Embeddings of the training images."""
        return self.recording.embeddings[: self.n_train]

    @property
    def z_p_test(self) -> np.ndarray:
        """Embeddings of the test images."""
        return self.recording.embeddings[self.n_train :]

    def _embeddings(self) -> np.ndarray:
        """Run the teacher over all images; keep what its blocks do, too, where students will want it."""
        if self._record and isinstance(self.source[1], Recording):
            return self.source[1].embeddings
        return Recording(self.live, self.images, False, self.options.out).embeddings

    @property
    def source(self) -> Source:
        """What students and rivals train on: the recorded run where there is room for one, or the teacher itself."""
        if self._source is None:
            need = self._room_for(len(self.images))
            if need <= self.options.room:
                self._source = self._recorded(self.images)
            else:
                print(
                    f"# Recording {len(self.images)} images takes {need:.0f} GiB, more than --room "
                    f"{self.options.room:g}: the teacher runs again over the training images of each class and seed.",
                    file=sys.stderr,
                )
                self._source = self.images, self.live
        return self._source

    @property
    def test_source(self) -> Source:
        """What is scored: the test images alone, of the recorded run or of one of their own where there is room."""
        if self._test_source is None:
            images, extractor = self.source
            if extractor is not self.live:
                self._test_source = images.take(np.arange(self.n_train, len(images))), extractor
            elif (need := self._room_for(len(self.data.X_test))) <= self.options.room:
                self._test_source = self._recorded(self.data.X_test)
            else:
                print(
                    f"# The {len(self.data.X_test)} test images alone would take {need:.0f} GiB: the teacher runs "
                    "again over them, too.",
                    file=sys.stderr,
                )
                self._test_source = self.data.X_test, self.live
        return self._test_source

    def _room_for(self, n_images: int) -> float:
        """GiB of a recorded run."""
        return n_images * Recording.bytes_per_image(self.live, self.images[0], self.options.n_blocks) / 2**30

    def _recorded(self, images: Images) -> Source:
        recording = Recording(self.live, images, self.options.n_blocks, self.options.out)
        return recording.images, recording

    def students(self, seed: int) -> BlockStudents:
        """Untrained students with the settings asked for."""
        changes: dict[str, Any] = {"n_blocks": self.options.n_blocks, "random_state": seed}
        if self.options.epochs:
            changes["max_epochs"] = self.options.epochs
        return BlockStudents.paper(**changes) if self.options.paper else BlockStudents(**changes)

    def default_detector(self) -> TransformalyDetector:
        """The library's default detector, not fitted yet."""
        return TransformalyDetector(self.live, random_state=0)

    def task(self, setting: str, label: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of the training images, and +1 or -1 for each test image."""
        numbered = dataclasses.replace(
            self.data, X_train=np.arange(self.n_train), X_test=np.arange(len(self.data.y_test))
        )
        rows, _, y_test = getattr(datasets, setting)(numbered, label)
        return rows, y_test

    def student_key(self, seed: int) -> str:
        """Key of whatever depends on the students."""
        students = self.students(seed)
        settings = {k: v for k, v in students.get_params().items() if k not in ELSEWHERE}
        schedule = "one-cycle" if students.lr == "auto" else "constant"
        settings = {**settings, **EARLIER, "schedule": schedule}
        chosen = sorted(q for q in self.options.quirks if q in quirks.QUIRKS)
        return _key({**self.base, "students": settings, "quirks": chosen})

    def discrepancies(self, setting: str, label: int, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
        """z_f of training and test images, and the seconds that training and measuring took; kept on disk."""
        name = f"{setting}_{label}_{seed}_{self.student_key(seed)}.npz"
        file = self.features / name
        if file.exists():
            with np.load(file) as kept:
                return kept["train"], kept["test"], float(kept["seconds"])
        start = time.perf_counter()
        rows, y_test = self.task(setting, label)
        # each student is kept until all are trained, so that a run that was stopped goes on with the next
        checkpoint = self.options.out / "checkpoint" / self.student_key(seed)
        students = self.students(seed).set_params(checkpoint=str(checkpoint))
        images, extractor = self.source
        fit_rows = rows
        if "best-epoch-on-test" in self.options.quirks:
            test_normal = self.n_train + np.flatnonzero(y_test == 1)
            students = quirks.BestEpochOnTest(**students.get_params(deep=False), n_held_out=len(test_normal))
            fit_rows = np.concatenate([rows, test_normal])
        if "teacher-dropout" in self.options.quirks:
            with quirks.teacher_dropout(self.live, seed):
                students.fit(self.images.take(fit_rows), extractor=self.live)
            students.extractor_ = extractor
        else:
            students.fit(images.take(fit_rows), extractor=extractor)
        train = students.transform(images.take(rows))
        X_test, students.extractor_ = self.test_source
        test = students.transform(X_test)
        seconds = time.perf_counter() - start
        temporary = file.with_suffix(".tmp.npz")
        np.savez(temporary, train=train, test=test, seconds=seconds)
        temporary.replace(file)  # a stopped run leaves no half file under the real name
        return train, test, seconds

    def run(self, setting: str, groups: list[str], after_class: Callable[[], None] = lambda: None) -> None:
        """Compute the rows of `groups` for each class and seed.

        A group is "default", "embedding", "densities", "students" or a rival's name. `after_class` is called when all
        of a class are there.
        """
        seeds = list(dict.fromkeys(seed for group in groups for seed in self.seeds(group)))
        work = [
            (x, seed, group) for x in self.labels() for seed in seeds for group in groups if seed in self.seeds(group)
        ]
        with tqdm(work, desc=f"{self.data.name} {setting}", unit="task") as progress:
            before = None
            for label, seed, group in progress:
                if before not in (None, label):
                    after_class()
                before = label
                name = self.data.class_names[label]
                progress.set_postfix_str(f"{name}, seed {seed}, {group}")
                key = self.group_key(group, seed)
                where = {"dataset": self.data.name, "setting": setting, "class": name, "seed": seed}
                mark = MARKS.get(group, group)
                if self.rows.find(key, method=mark, **where):
                    continue
                start = time.perf_counter()
                *results, extra = self._results(setting, label, seed, group)
                seconds = time.perf_counter() - start + extra
                # the mark comes last: a stopped run does the whole group again
                for method, auroc in sorted(results, key=lambda result: result[0] == mark):
                    self.rows.add(**where, method=method, auroc=f"{auroc:.6f}", seconds=f"{seconds:.1f}", key=key)

    def _results(self, setting: str, label: int, seed: int, group: str) -> Iterator[Any]:
        """Yield (method, AUROC) of a group, and last the seconds spent in an earlier run."""
        rows, y_test = self.task(setting, label)
        if group in RIVALS:
            yield group, roc_auc_score(y_test, self._rival_scores(group, rows, seed))
            yield 0.0
            return
        if group == "default":
            detector = self.default_detector().fit(self.data.X_train.take(rows))
            yield group, roc_auc_score(y_test, detector.score_as_new(self.data.X_test))
            yield 0.0
            return
        whitening = spaces.Whitening(
            self.z_p[rows], self.z_p_test, fewer=int("one-component-fewer" in self.options.quirks)
        )
        if group in ("embedding", "densities"):
            one = group == "embedding"
            yield from spaces.embedding_rows(whitening, y_test) if one else spaces.density_rows(whitening, y_test, seed)
            yield 0.0
            return
        start = time.perf_counter()
        train, test, seconds = self.discrepancies(setting, label, seed)
        scoring = [quirks.unscaled_gaussian()] if "unscaled-ridge" in self.options.quirks else []
        spent = time.perf_counter() - start
        yield from spaces.both_rows(whitening, (train, test), y_test, *scoring)
        yield seconds - spent if spent < 0.5 * seconds else 0.0

    def _rival_scores(self, name: str, rows: np.ndarray, seed: int) -> np.ndarray:
        rival = self.fit_rival(name, rows, seed)
        X_test = self.recording.images.take(np.arange(self.n_train, len(self.images)))
        if name in TUNING_RIVALS:  # only MSAD's training changes the images; the frozen blocks have run on the others
            X_test, rival.extractor_ = self.test_source if self._holds_tuned(rival) else (self.data.X_test, self.live)
        elif name in PIXEL_RIVALS:
            X_test = self.data.X_test
        return rival.score_samples(X_test)

    def fit_rival(self, name: str, rows: np.ndarray, seed: int) -> Any:
        """A rival fitted on the training images at `rows`."""
        rival = RIVALS[name]().set_params(**self.rival_settings(name, seed))
        images, extractor = self.recording.images, self.recording
        if name in PIXEL_RIVALS or (name in TUNING_RIVALS and not self._holds_tuned(rival)):
            images, extractor = self.images, self.live
        elif name in TUNING_RIVALS:
            images, extractor = self.source
        if name == "MSAD" and len(rows) > self.n_train / 2 and self._room_for_views(rival) <= self.options.room:
            # most of the images are those of the other classes' runs, too
            rival.set_params(views=self._views.setdefault(seed, {}))
        return rival.set_params(extractor=extractor).fit(images.take(rows))

    def _room_for_views(self, rival: Any) -> float:
        """GiB of main memory that all views of MSAD's runs take."""
        entering = capture(self.live, self.live.preprocess([self.images[0]]), len(self.live.blocks_) - rival.n_tuned)
        return entering.nbytes * 2 * rival.max_epochs * self.n_train * len(self.seeds("MSAD")) / 2**30

    def _holds_tuned(self, rival: Any) -> bool:
        """Whether a recording holds what enters the first block that a rival tunes."""
        return rival.n_tuned <= self.options.n_blocks

    def seeds(self, group: str) -> list[int]:
        """Seeds that a group runs with; what has no chance in it runs once."""
        if group not in (*RIVALS, "default"):
            return self.options.seeds
        return (self.options.rival_seeds or self.options.seeds) if group in SEEDED_RIVALS else [0]

    def rival_settings(self, name: str, seed: int) -> dict[str, Any]:
        """Parameters of a rival other than its own: the seed, those asked for, and fewer epochs for a dry run."""
        known = RIVALS[name]().get_params(deep=False)
        settings = {"random_state": seed} if "random_state" in known else {}
        if "device" in known:
            settings["device"] = self.options.device
        if self.options.paper:
            settings.update(getattr(RIVALS[name], "paper_settings", {}))
        settings.update({parameter: value for rival, parameter, value in self.options.rival_settings if rival == name})
        if self.options.dry_run:
            settings.update({k: 1 for k in ("max_epochs", "pretrain_epochs") if k in known})
        return settings

    def group_key(self, group: str, seed: int) -> str:
        """Key of all that a group's figures depend on."""
        if group == "students":
            return _key({"students": self.student_key(seed), **spaces.SCORING})
        if group == "embedding":
            return _key({**self.base, **spaces.SCORING})
        if group == "densities":
            return _key(self.base)
        if group == "default":
            settings = self.default_detector().get_params(deep=False)
            settings = {name: value for name, value in settings.items() if name not in ELSEWHERE}
            return _key({**self.base, "classifier": self.live.weights_sha256_, "detector": settings})
        parameters = {**RIVALS[group]().get_params(deep=False), **self.rival_settings(group, seed)}
        # what changes no figure
        parameters.pop("views", None)
        if "device" in parameters:
            parameters["device"] = "auto"
        return _key({**self.base, "rival": group, "parameters": parameters})

    def labels(self) -> list[int]:
        """The classes that take turns."""
        names = self.data.class_names
        if not self.options.classes:  # parts of a data set may lack some
            return np.intersect1d(self.data.y_train, self.data.y_test).tolist()
        unknown = set(self.options.classes) - set(names)
        if unknown:
            raise SystemExit(f"{self.data.name} has no class {sorted(unknown)}; it has {names}.")
        return [names.index(name) for name in self.options.classes]

    def values(self, setting: str, group: str, method: str) -> np.ndarray:
        """AUROC of classes by the group's seeds; NaN where not computed."""
        table = np.full((len(self.labels()), len(self.seeds(group))), np.nan)
        for i, j, row in self.found(setting, group, method):
            table[i, j] = float(row["auroc"])
        return table

    def found(self, setting: str, group: str, method: str) -> Iterator[tuple[int, int, dict[str, str]]]:
        """Yield the rows of a method that are there, each with the places of its class and its seed."""
        if group == "default" and self.options.default_rows:
            yield from self._default_rows(setting)
            return
        for j, seed in enumerate(self.seeds(group)):
            key = self.group_key(group, seed)
            for i, label in enumerate(self.labels()):
                where = {"dataset": self.data.name, "setting": setting, "class": self.data.class_names[label]}
                rows = self.rows.find(None if self.options.show else key, seed=seed, method=method, **where)
                if rows:
                    yield i, j, rows[-1]

    def _default_rows(self, setting: str) -> Iterator[tuple[int, int, dict[str, str]]]:
        """As `found`, of what `benchmarks/accuracy/run.py` has measured of the default."""
        wanted = {"data": self.data.name, "setting": published.SETTINGS[setting]}
        wanted |= {"teacher": "vit_tiny", "method": "all spaces"}
        with self.options.default_rows.open() as file:
            found = {row["class"]: row for row in csv.DictReader(file) if wanted.items() <= row.items()}
        for i, label in enumerate(self.labels()):
            name = self.data.class_names[label]
            if name in found:
                row = {"dataset": self.data.name, "setting": setting, "class": name, "seed": "0", "method": "default"}
                yield i, 0, {**row, "auroc": found[name]["auroc"], "seconds": found[name]["seconds"], "key": ""}

    def seconds(self, setting: str, groups: list[str]) -> float:
        """Seconds that all rows of these groups took, over classes and seeds."""
        keys = {self.group_key(group, seed) for group in groups for seed in self.seeds(group)}
        tasks = {
            (row["key"], row["class"], row["seed"]): float(row["seconds"])
            for row in self.rows.rows
            if row["key"] in keys and row["setting"] == setting
        }
        return sum(tasks.values())


def subsample(data: Any, samples: int | None, test_samples: int | None) -> Any:
    """At most so many images a class, drawn once with a seed of its own."""

    def keep(labels: np.ndarray, number: int | None) -> np.ndarray:
        if number is None:
            return np.arange(len(labels))
        rng = np.random.default_rng(0)
        places = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        return np.sort(np.concatenate([rng.permutation(place)[:number] for place in places]))

    train, test = keep(data.y_train, samples), keep(data.y_test, test_samples)
    return dataclasses.replace(
        data,
        X_train=data.X_train.take(train),
        y_train=data.y_train[train],
        X_test=data.X_test.take(test),
        y_test=data.y_test[test],
    )


def pixels_sha256(images: Images) -> str:
    """SHA-256 over the decoded pixels of all images, their shapes, dtypes and order.

    Rows outlive what the library's own caches take an image for.
    """
    digest = hashlib.sha256(str(len(images)).encode())
    for positions, pixels in images.batches(64):
        for position, image in zip(positions, pixels):
            digest.update(f"{position} {image.dtype} {image.shape}".encode())
            digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def weights_sha256(model_name: str, weights: Any) -> str:
    """SHA-256 of the teacher's weights at their native image size, without the classifier."""
    model = create_model(model_name, weights)
    if hasattr(model, CLASS_HEAD):
        delattr(model, CLASS_HEAD)
    return state_sha256(model)


def _key(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
