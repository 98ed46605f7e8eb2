"""The file of --calibration is refused where it does not hold what the network takes."""

from pathlib import Path

import numpy as np
import pytest

from hnas.deployment.loading import read_calibration
from tests.hnas.deployment.test_own import images

CALIBRATION = {
    "absent": (None, "no calibration file"),
    "no array": (lambda file: file.write_text("hello"), "holds no plain arrays"),
    "pickled": (lambda file: np.save(file, np.array([{}], dtype=object)), "holds no plain arrays"),
    "truncated": (lambda file: file.write_bytes(b"PK\x03\x04 cut"), "holds no plain arrays"),
    "other size": (
        lambda file: np.save(file, images(4, 3, 8, 8)),
        "[4, 3, 8, 8]; the network takes float32[N, 3, 12",
    ),
    "other type": (lambda file: np.save(file, images(4).astype(np.int64)), "holds int64[4, 3, 12, 12]"),
    "one number": (lambda file: np.save(file, np.float32(1)), "holds float32[]"),
    "empty": (lambda file: np.save(file, images(0)), "holds float32[0, 3, 12, 12]"),
    "infinite": (lambda file: np.save(file, images(4) / 0), "holds NaN or infinity"),
}


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.parametrize("case", CALIBRATION)
def test_calibration_of_another_kind_is_refused(tmp_path: Path, case: str) -> None:
    make, reason = CALIBRATION[case]
    file = tmp_path / "real.npy"
    if make is not None:
        make(file)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_calibration(file, (np.zeros((1, 3, 12, 12), np.float32),))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_calibration_comes_in_whole_batches_and_one_array_an_input(tmp_path: Path) -> None:
    file = tmp_path / "real.npz"
    examples = (np.zeros((2, 3, 12, 12), np.float32), np.zeros((2, 5), np.float32))
    np.savez(file, a=images(6), b=images(6, 5))
    found = read_calibration(file, examples)
    assert [[array.shape for array in sample] for sample in found] == [[(2, 3, 12, 12), (2, 5)]] * 3
    for first, second in ((5, 5), (6, 4)):
        np.savez(file, a=images(first), b=images(second, 5))
        with pytest.raises(ValueError, match=r"the network takes float32\[N, 3, 12, 12\], float32\[N, 5\]"):
            read_calibration(file, examples)
    np.savez(file, a=images(6))
    with pytest.raises(ValueError, match="the network takes"):
        read_calibration(file, examples)
