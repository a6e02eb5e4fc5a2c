"""The same seed gives the same scores wherever it runs, and no call leaves a trace in the user's program."""

import os
import pickle
import random
import re
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import tiny_detector, tiny_extractor, tiny_students
from PIL import Image, ImageFile
from sklearn.base import clone
from sklearn.mixture import GaussianMixture

from skl_transformaly import BlockStudents, ConformalDetector, RidgeStudents, load, save
from skl_transformaly.utils._torch import whole_float32

# The same seed, the same scores


PROGRAM = """
import sys; sys.path[:0] = ['tests', '.']
import numpy as np, torch
torch.set_num_threads(1)
from conftest import tiny_detector, tiny_extractor
X = np.random.default_rng(1).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
for model, precision in (("test_vit", "float32"), ("test_vit", "bfloat16"), ("test_efficientnet", "float32")):
    detector = tiny_detector(extractor=tiny_extractor(model, precision=precision)).fit(X)
    print(detector.score_samples(X).tobytes().hex())
"""


def scores_of_a_process(**environment):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **environment},
        cwd=os.path.dirname(os.path.dirname(__file__)),
    )
    return done.stdout


@pytest.mark.slow
def test_two_processes_give_the_same_bits():
    # another order of sets and dicts of strings must change nothing either
    first, second = (scores_of_a_process(PYTHONHASHSEED=seed) for seed in ("1", "2"))
    assert first.count("\n") == 3
    assert first == second


@pytest.mark.parametrize("model, precision", [("test_vit", "float32"), ("test_efficientnet", "float32")])
def test_a_second_fit_gives_the_same_bits(model, precision, images):
    first, second = (
        tiny_detector(extractor=tiny_extractor(model, precision=precision)).fit(images).score_samples(images)
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("model", ["test_vit", "test_efficientnet"])
@pytest.mark.parametrize("precision, tolerance", [("float64", 1e-9), ("float32", 1e-3)])
def test_batches_of_any_size_give_the_same_scores(model, precision, tolerance, images):
    detector = tiny_detector(extractor=tiny_extractor(model, precision=precision)).fit(images)
    expected = detector.score_samples(images)
    for batch_size in (1, 5, 100):
        detector.extractor_.batch_size = batch_size
        np.testing.assert_allclose(detector.score_samples(images), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision, tolerance", [("float64", 1e-9), ("float32", 1e-3)])
def test_any_number_of_threads_gives_the_same_scores(precision, tolerance, images):
    before = torch.get_num_threads()
    detector = tiny_detector(extractor=tiny_extractor(precision=precision)).fit(images)
    scores = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            scores.append(detector.score_samples(images))
    finally:
        torch.set_num_threads(before)
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], rtol=0, atol=tolerance)


def test_order_of_images_is_order_of_scores(fitted):
    detector, X = fitted
    order = np.random.default_rng(0).permutation(len(X))
    np.testing.assert_allclose(detector.score_samples(X[order]), detector.score_samples(X)[order], rtol=1e-9)


# Threads


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
@pytest.mark.parametrize("fresh", [False, True], ids=["at hand", "after unpickling"])
@pytest.mark.slow
def test_eight_threads_at_once_score_as_one(precision, fresh, images, rng):
    """After unpickling all of them find the teacher not loaded yet."""
    detector = tiny_detector(extractor=tiny_extractor(precision=precision)).fit(images)
    batches = [rng.integers(0, 256, (n, 20, 24, 3), dtype=np.uint8) for n in range(1, 9)]
    expected = [detector.score_samples(batch) for batch in batches]
    expected_maps = [detector.anomaly_map(batch) for batch in batches]
    if fresh:
        detector = pickle.loads(pickle.dumps(detector))
    start = threading.Barrier(8)

    def work(i):
        start.wait()
        return [(detector.score_samples(batches[i]), detector.anomaly_map(batches[i])) for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    for i in range(8):
        for scores, maps in found[i]:
            np.testing.assert_array_equal(scores, expected[i])
            np.testing.assert_array_equal(maps, expected_maps[i])


@pytest.mark.parametrize("model", ["test_vit", "test_efficientnet"])
@pytest.mark.slow
def test_fits_in_threads_give_what_fits_one_by_one_give(model, images):
    """Weights are drawn from torch's one generator for the whole process."""
    detectors = [
        tiny_detector(extractor=tiny_extractor(model), students=tiny_students(random_state=seed)) for seed in range(4)
    ]
    expected = [clone(detector).fit(images).score_samples(images) for detector in detectors]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda detector: detector.fit(images).score_samples(images), detectors))
    for scores, alone in zip(found, expected):
        np.testing.assert_array_equal(scores, alone)
    assert torch.equal(torch.get_rng_state(), before)


def test_fits_in_threads_keep_the_default_dtype(images):
    detectors = [tiny_detector(students=tiny_students(random_state=seed)) for seed in range(8)]
    torch.set_default_dtype(torch.float64)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda detector: detector.fit(images), detectors))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


# Processes


FORK = """
import multiprocessing, sys; sys.path[:0] = ['tests', '.']
import numpy as np, torch
torch.set_num_threads(2)
from conftest import tiny_detector, tiny_extractor
X = np.random.default_rng(1).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
def work(detector, queue):
    queue.put((detector.score_samples(X), detector.fit(X).score_samples(X)))
if __name__ == "__main__":
    detector = tiny_detector(extractor=tiny_extractor(image_size=64, precision="float32")).fit(X)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=work, args=(detector, queue), daemon=True)
    child.start()
    for scores in queue.get(timeout=60):
        np.testing.assert_allclose(scores, detector.score_samples(X), rtol=1e-4)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.slow
def test_a_forked_process_scores_and_fits():
    """As workers of a server do that loads the model first; the threads that the parent had are not in the child."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
sys.path.insert(0, "tests")
import numpy as np
from conftest import tiny_detector
X = np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (int(sys.argv[1]) << 20), resource.RLIM_INFINITY))
try:
    print(tiny_detector().fit(X).score_samples(X[:1]))
except MemoryError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits and sizes are as on Linux")
@pytest.mark.parametrize("mib, said", [(40, "Less than 128 MiB of memory are left.*ulimit"), (2048, r"^\[.*\]$")])
@pytest.mark.slow
def test_too_little_memory_is_an_error_and_no_endless_wait(mib, said):
    """OpenBLAS tries to get its buffers for ever."""
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, str(mib)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=os.path.dirname(os.path.dirname(__file__)),
    )
    assert re.search(said, done.stdout.strip()), done.stderr


# The user's program


def world():
    """All that a program may have set for itself and a call might change."""
    kind, keys, *rest = np.random.get_state()
    return {
        "numpy's generator": (kind, keys.tobytes(), *rest),
        "python's generator": random.getstate(),
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "torch's seed": torch.initial_seed(),
        "threads within": torch.get_num_threads(),
        "threads between": torch.get_num_interop_threads(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
        "matrix products": torch.get_float32_matmul_precision(),
        "attention": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        "onednn": torch.backends.mkldnn.enabled,
        "numpy's errors": np.geterr(),
        "numpy's printing": str(np.get_printoptions()),
        "Pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES),
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "threads of the program": {thread.name for thread in threading.enumerate()},
    }


def calls(detector, X, folder):
    """Each thing that a user may ask, by name."""

    def fail_in_training():
        broken = clone(detector).set_params(students=BlockStudents(n_blocks=2, lr=1e30, max_epochs=3), random_state=0)
        with pytest.raises((FloatingPointError, ValueError)):
            broken.fit(X)

    def fail_on_input():
        with pytest.raises(ValueError):
            detector.score_samples(np.full((2, 20, 24, 3), np.nan))

    return {
        "fit": lambda: clone(detector).fit(X),
        "fit with a cache": lambda: clone(detector).set_params(memory=str(folder / "cache")).fit(X),
        "fit, showing progress": lambda: clone(detector).set_params(verbose=1).fit(X),
        "fit without a seed": lambda: clone(detector).set_params(random_state=None).fit(X),
        "fit_predict": lambda: clone(detector).fit_predict(X),
        "score_samples": lambda: detector.score_samples(X),
        "decision_function": lambda: detector.decision_function(X),
        "predict": lambda: detector.predict(X),
        "transform": lambda: detector.transform(X),
        "anomaly_map": lambda: detector.anomaly_map(X),
        "explain": lambda: detector.explain(X),
        "p_values": lambda: detector.p_values(X),
        "pickle": lambda: pickle.loads(pickle.dumps(detector)).score_samples(X),
        "save and load": lambda: (save(detector, folder / "model.tfm"), load(folder / "model.tfm").score_samples(X)),
        "ConformalDetector": lambda: ConformalDetector(detector, alpha=0.4, random_state=0).fit(X).p_values(X),
        "a failing fit": fail_in_training,
        "a failing score": fail_on_input,
    }


@pytest.fixture(scope="module")
def module_images():
    return np.random.default_rng(1).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)


NAMES = list(calls(tiny_detector(), None, None))


@pytest.mark.filterwarnings("ignore:.*calibration")
@pytest.mark.parametrize("name", NAMES)
def test_no_call_leaves_a_trace(name, fitted, tmp_path):
    detector, X = fitted
    call = calls(detector, X, tmp_path)[name]
    np.random.seed(7)
    random.seed(7)
    torch.manual_seed(7)
    before = world()
    call()
    after = world()
    for key, value in before.items():
        assert after[key] == value, key


CIRCUMSTANCES = {
    "no_grad": lambda: torch.no_grad(),
    "inference_mode": lambda: torch.inference_mode(),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "a default device": lambda: torch.device("meta"),
    "numpy raises": lambda: np.errstate(all="raise"),
    "a default dtype": lambda: _DefaultDtype(torch.float64),
    "deterministic": lambda: _Deterministic(),
}


class _DefaultDtype:
    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_):
        torch.set_default_dtype(torch.float32)


class _Deterministic:
    def __enter__(self):
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *_):
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("model", ["test_vit", "test_efficientnet"])
@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_what_the_program_has_set_changes_no_score(name, model, images):
    def work():
        detector = tiny_detector(extractor=tiny_extractor(model, precision="float32")).fit(images)
        return detector.score_samples(images), detector.anomaly_map(images), detector

    scores, maps, detector = work()
    with CIRCUMSTANCES[name]():
        scored_within = detector.score_samples(images)
        scores_within, maps_within, detector_within = work()
    np.testing.assert_array_equal(scored_within, scores)
    np.testing.assert_array_equal(scores_within, scores)
    np.testing.assert_array_equal(maps_within, maps)
    np.testing.assert_array_equal(detector_within.score_samples(images), scores)


def test_numpy_may_raise_at_the_tiny_products_of_any_density(images):
    """A mixture's, for example, of which scikit-learn takes the exponential."""
    detector = tiny_detector(density=GaussianMixture(2), explained_variance=0.5)
    expected = clone(detector).fit(images[:8]).score_samples(images)
    with np.errstate(all="raise"):
        found = detector.fit(images[:8]).score_samples(images)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("students", [tiny_students(), RidgeStudents(n_blocks=2)], ids=["trained", "solved"])
@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_what_the_program_has_set_changes_no_discrepancy(name, students, images):
    def work():
        fresh = clone(students).set_params(extractor=tiny_extractor(precision="float32"))
        if hasattr(fresh, "partial_fit"):
            return fresh.partial_fit(images[:8]).partial_fit(images[8:]).transform(images)
        return fresh.fit(images).transform(images)

    expected = work()
    with CIRCUMSTANCES[name]():
        found = work()
    np.testing.assert_array_equal(found, expected)


def cuda_settings():
    """What decides how CUDA computes float32, by torch's newer names."""
    backends = torch.backends
    return (
        backends.cuda.matmul.fp32_precision,
        backends.cudnn.conv.fp32_precision,
        backends.cudnn.deterministic,
        backends.cudnn.benchmark,
    )


@pytest.fixture
def _caller_takes_tf32():
    """A program that trades bits for speed."""
    before = cuda_settings()
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.cudnn.benchmark = True
    yield
    torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before[:2]
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[2:]


needs_newer_names = pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9 has no fp32_precision"
)


@needs_newer_names
@pytest.mark.usefixtures("_caller_takes_tf32")
def test_cuda_computes_float32_whole_whatever_the_program_has_set():
    with whole_float32:
        assert cuda_settings() == ("ieee", "ieee", True, False)
    assert cuda_settings() == ("tf32", "tf32", False, True)


@needs_newer_names
@pytest.mark.usefixtures("_caller_takes_tf32")
def test_the_last_thread_puts_back_how_cuda_computes():
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with whole_float32:
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(10)
    with whole_float32:
        pass
    assert cuda_settings()[:2] == ("ieee", "ieee")
    leave.set()
    thread.join()
    assert cuda_settings() == ("tf32", "tf32", False, True)
