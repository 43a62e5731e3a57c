"""Pairing, published layouts, crops."""
import argparse
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import dataset
from dataset import (
    CropDataset,
    Pair,
    PairDataset,
    add_reading_options,
    add_source_options,
    crop_batches,
    darkened,
    find_pairs,
    find_sources,
    match_pairs,
    named_pairs,
    of_one_size,
    reader,
    resized,
)
from images import DataError

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def the_same_images_in_any_order_of_tests():
    rng.bit_generator.state = np.random.default_rng(0).bit_generator.state


def gray(height=20, width=30):
    return rng.integers(0, 256, (height, width), np.uint8)


def save(path, image=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), gray() if image is None else image)
    return path


# --- pairing ---


def test_folders_pair_by_stem_in_natural_order(tmp_path):
    for name in ("10", "2", "1"):
        save(tmp_path / "ir" / f"{name}.png")
        save(tmp_path / "vi" / f"{name}.bmp")
    (tmp_path / "ir" / "notes.txt").write_text("not an image")
    with pytest.warns(UserWarning, match="notes.txt"):
        pairs = match_pairs(tmp_path / "ir", tmp_path / "vi")
    assert [p.name for p in pairs] == ["1", "2", "10"]
    assert pairs[0].vis.name == "1.bmp"


def test_one_folder_pairs_by_prefix(tmp_path):
    for n in (1, 2, 11):
        save(tmp_path / f"IR{n}.bmp")
        save(tmp_path / f"VIS{n}.bmp")
    assert [p.name for p in match_pairs(tmp_path, tmp_path)] == ["1", "2", "11"]


def test_all_missing_partners_are_listed_at_once(tmp_path):
    for name in ("a", "b", "c"):
        save(tmp_path / "ir" / f"{name}.png")
    for name in ("c", "d"):
        save(tmp_path / "vis" / f"{name}.png")
    with pytest.raises(DataError) as caught:
        match_pairs(tmp_path / "ir", tmp_path / "vis")
    for name in ("a.png", "b.png", "d.png"):
        assert name in str(caught.value)
    pairs, unpaired = find_pairs(tmp_path / "ir", tmp_path / "vis")
    assert [p.name for p in pairs] == ["c"] and len(unpaired) == 3


def test_ambiguous_names_and_empty_folders_are_refused(tmp_path):
    save(tmp_path / "ir" / "a.png")
    save(tmp_path / "ir" / "a.jpg")
    save(tmp_path / "vis" / "a.png")
    with pytest.raises(DataError, match="share a name"):
        match_pairs(tmp_path / "ir", tmp_path / "vis")
    for name in ("IR1.png", "IR_1.png", "VIS1.png"):
        save(tmp_path / "one" / name)
    with pytest.raises(DataError, match="IR1.png and IR_1.png"):
        match_pairs(tmp_path / "one", tmp_path / "one")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no images"):
        match_pairs(tmp_path / "none", tmp_path / "vis")
    with pytest.raises(DataError, match="no such folder"):
        match_pairs(tmp_path / "absent", tmp_path / "vis")
    with pytest.raises(DataError, match="IR1.png: is a file; give its folder"):
        match_pairs(tmp_path / "one" / "IR1.png", tmp_path / "vis")


# --- published layouts ---

TREES = {
    ("tno", None): ["IR1.bmp", "VIS1.bmp"],
    ("msrs", None): ["test/ir/00001D.png", "test/vi/00001D.png"],
    ("msrs", "train"): ["train/ir/00002N.png", "train/vi/00002N.png"],
    ("m3fd", None): ["M3FD_Fusion/Ir/00000.png", "M3FD_Fusion/Vis/00000.png"],
    ("m3fd", "Detection"): ["M3FD_Detection/Ir/00000.png", "M3FD_Detection/Vis/00000.png"],
    ("mri-pet", None): ["test/MRI/25015.png", "test/PET/25015.png"],
    ("mri-spect", "train"): ["SPECT-MRI/train/MRI/3.png", "SPECT-MRI/train/SPECT/3.png"],
    ("mri-ct", None): ["CT-MRI/test/MRI/11.png", "CT-MRI/test/CT/11.png"],
    ("roadscene", "all"): ["cropinfrared/FLIR_1.jpg", "crop_LR_visible/FLIR_1.jpg"],
}


@pytest.mark.parametrize("key", TREES, ids=str)
def test_published_layouts(tmp_path, key):
    name, split = key
    ir, vis = (save(tmp_path / file) for file in TREES[key])
    (pair,) = named_pairs(name.upper(), tmp_path, split)
    assert pair.ir.samefile(ir) and pair.vis.samefile(vis)


HASHES = {"msrs_test40.txt": "29b8a5355a177a50", "roadscene_train.txt": "26907dd5c1f69abf",
          "roadscene_val.txt": "0fba864cae95beae"}


def test_split_lists_are_those_of_the_results():
    """180 and 40 pairs of RoadScene that share none, and 40 of MSRS. Measured rows hold for these names alone."""
    hashes = {path.name: hashlib.sha256("\n".join(path.read_text(encoding="utf-8").split()).encode()).hexdigest()[:16]
              for path in dataset.SPLIT_LISTS.glob("*.txt")}
    assert hashes == HASHES


def test_mri_joins_pet_and_spect_and_keeps_equal_numbers_apart(tmp_path):
    for split in ("train", "test"):
        for kind in ("PET", "SPECT"):
            for side in ("MRI", kind):
                save(tmp_path / f"{kind}-MRI" / split / side / "7.png")
    for split in ("train", None):
        pairs = named_pairs("mri", tmp_path, split)
        assert [pair.name for pair in pairs] == ["mri-pet-7", "mri-spect-7"]
        assert [pair.vis.parent.name for pair in pairs] == ["PET", "SPECT"]
        assert {pair.ir.parent.parent.name for pair in pairs} == {split or "test"}
    save(tmp_path / "SPECT-MRI" / "train" / "MRI" / "8.png")
    with pytest.raises(DataError, match=r"SPECT-MRI/train/MRI/8\.png: no visible partner"):
        named_pairs("mri", tmp_path, "train")
    (tmp_path / "PET-MRI").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="To fetch mri-pet"):
        named_pairs("mri", tmp_path)


def test_mri_ct_has_no_training_split(tmp_path):
    with pytest.raises(DataError, match="it has: test"):
        named_pairs("mri-ct", tmp_path, "train")


def test_a_split_with_missing_pairs_lists_them(tmp_path):
    save(tmp_path / "cropinfrared" / "FLIR_00006.jpg")
    save(tmp_path / "crop_LR_visible" / "FLIR_00006.jpg")
    with pytest.raises(DataError, match="FLIR_00018"):
        named_pairs("roadscene", tmp_path, "train")


def test_bare_folders_are_the_evaluated_split_and_never_the_training_set(tmp_path):
    save(tmp_path / "ir" / "1.png")
    save(tmp_path / "vi" / "1.png")
    assert len(named_pairs("msrs", tmp_path)) == 1
    with pytest.raises(DataError, match="train"):
        named_pairs("msrs", tmp_path, "train")


def test_a_file_outside_a_listed_split_does_not_stop_it(tmp_path):
    stems = (dataset.SPLIT_LISTS / "roadscene_val.txt").read_text(encoding="utf-8").split()
    for stem in stems:
        save(tmp_path / "cropinfrared" / f"{stem}.jpg")
        save(tmp_path / "crop_LR_visible" / f"{stem}.jpg")
    save(tmp_path / "cropinfrared" / "FLIR_stray.jpg")
    assert [pair.name for pair in named_pairs("roadscene", tmp_path)] == stems
    with pytest.raises(DataError, match="FLIR_stray"):
        named_pairs("roadscene", tmp_path, "all")


def test_unknown_names_say_what_is_known(tmp_path):
    with pytest.raises(DataError, match="roadscene"):
        named_pairs("nothing", tmp_path)
    with pytest.raises(DataError, match="val, train, all"):
        named_pairs("roadscene", tmp_path, "test")
    with pytest.raises(DataError, match="git clone .*RoadScene"):
        named_pairs("roadscene", tmp_path)


def test_check_command(tmp_path, capsys):
    for n in (1, 2):
        save(tmp_path / f"IR{n}.bmp")
        save(tmp_path / f"VIS{n}.bmp", gray(20, 30) if n == 1 else gray(40, 30))
    assert dataset.main(["tno", str(tmp_path)]) == 1
    assert "30x20" in capsys.readouterr().err
    save(tmp_path / "VIS2.bmp")
    assert dataset.main(["TNO", str(tmp_path)]) == 0
    assert "2 pairs, 30x20" in capsys.readouterr().out
    for name in ("IR3.bmp", "IR4.bmp"):
        save(tmp_path / name)
    assert dataset.main(["tno", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "IR3.bmp" in lines[1] and "IR4.bmp" in lines[2]      # a list has a line for each file


# --- data sets ---


@pytest.fixture
def pairs(tmp_path):
    for n in range(3):
        save(tmp_path / "ir" / f"{n}.png", gray(40 + n, 50))
        save(tmp_path / "vis" / f"{n}.png", gray(40 + n, 50))
    return PairDataset(match_pairs(tmp_path / "ir", tmp_path / "vis"))


def test_pair_dataset_lists_every_problem(tmp_path):
    good, small = save(tmp_path / "good.png"), save(tmp_path / "small.png", gray(10, 30))
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        PairDataset([Pair("one", good, small), Pair("two", good, good), Pair("three", tmp_path / "bad.png", good)])
    assert "2 of 3" in str(caught.value) and "30x10" in str(caught.value) and "bad.png" in str(caught.value)


def test_items_are_gray_pairs_as_the_files_have_them(tmp_path):
    ir, vis = gray(), rng.integers(0, 256, (20, 30, 3), np.uint8)
    save(tmp_path / "ir" / "a.png", ir), save(tmp_path / "vis" / "a.png", vis)
    data = PairDataset(match_pairs(tmp_path / "ir", tmp_path / "vis"))
    assert len(data) == 1 and data.names == ["a"]
    assert np.array_equal(data[0][0], ir[None]) and data[0][1].dtype == np.uint8
    assert np.array_equal(data[0][1], cv2.cvtColor(vis, cv2.COLOR_BGR2GRAY)[None])
    (batch, _), = DataLoader(data)
    assert torch.equal(batch, torch.from_numpy(ir)[None, None])


def test_crops_hold_no_second_copy_of_the_images(tmp_path):
    save(tmp_path / "ir" / "a.png", gray(16, 30))
    save(tmp_path / "vi" / "a.png", gray(16, 30))
    pairs = PairDataset(match_pairs(tmp_path / "ir", tmp_path / "vi"))
    assert all(np.shares_memory(*images) for images in zip(CropDataset(pairs, 16).items[0], pairs.items[0]))
    assert CropDataset(pairs, 20).items[0][0].shape == (1, 20, 30)


def test_crops_are_aligned_windows_of_both_sources(pairs):
    pairs.items = [(ir, 255 - ir) for ir, _ in pairs.items]
    for number in range(20):
        ir, vis = CropDataset(pairs, 16, seed=3, flips=number % 2 == 0)[number]
        assert ir.shape == (1, 16, 16) and ir.dtype == np.uint8
        assert np.array_equal(vis, 255 - ir)


@pytest.mark.parametrize("flips", [False, True])
def test_crops_vary_in_place_and_flip_only_if_asked(pairs, flips):
    pairs.items = [(np.arange(40 * 50).reshape(1, 40, 50),) * 2]
    crops = [CropDataset(pairs, 16, 0, flips)[n][0][0] for n in range(60)]
    assert len({int(c.min()) for c in crops}) > 50
    seen = {(bool(c[0, 0] < c[0, 1]), bool(c[0, 0] < c[1, 0])) for c in crops}
    assert seen == ({(a, b) for a in (False, True) for b in (False, True)} if flips else {(True, True)})


@pytest.mark.parametrize("dim", [0.3, 1.0])
def test_dimmed_crops_are_the_same_windows_darkened_source_by_source(pairs, dim):
    ramp = np.tile(np.arange(256, dtype=np.uint8), (16, 1))[None]
    pairs.items = [(ramp, ramp)] * 3
    plain, dimmed = (CropDataset(pairs, 16, 3, dim=share) for share in (0.0, dim))
    changed = []
    for number in range(300):
        before, after = plain[number], dimmed[number]
        assert np.array_equal(*before) and all(crop.dtype == np.uint8 for crop in after)
        assert all((crop <= old).all() and (np.diff(crop[0, 0]) >= 0).all() for crop, old in zip(after, before))
        changed.append([not np.array_equal(crop, old) for crop, old in zip(after, before)])
    shares = np.array(changed)
    # 600 draws: four standard deviations of a share of 0.3 are 0.075.
    assert shares.mean() == pytest.approx(dim, abs=0.08)
    assert dim == 1 or shares.any(1).mean() > 1.4 * dim             # each source has its own chance
    assert not all(np.array_equal(*dimmed[number]) for number in range(20))


def test_darkening_is_a_factor_and_a_power_of_the_levels():
    ramp, generator = np.arange(256, dtype=np.uint8), np.random.default_rng(0)
    factors, powers = [], []
    for _ in range(500):
        dark = darkened(ramp, generator) / 255
        factors.append(dark[255])
        if dark[255] > 0.5:     # the levels of darker results are too coarse to read the power from them
            powers.append(np.log(dark[128] / dark[255]) / np.log(128 / 255))
    assert 0.095 <= min(factors) < 0.13 and 0.95 < max(factors) <= 1
    assert np.median(factors) == pytest.approx(0.1**0.5, abs=0.05)
    assert 0.95 < min(powers) < 1.1 and 3.5 < max(powers) < 4.2 and np.median(powers) == pytest.approx(2, abs=0.3)


def test_lamps_are_white_in_their_share_of_the_darkened_images():
    image, generator = np.repeat(np.arange(100, dtype=np.uint8), 10)[None, None], np.random.default_rng(0)
    image[..., -4:] = 200       # fewer than the quantile leaves out
    dark = [darkened(image, generator, lamps=0.3) for _ in range(400)]
    assert np.mean([crop.max() == 255 for crop in dark]) == pytest.approx(0.3, abs=0.09)      # four standard deviations
    powers = [np.log(crop[0, 0, 500] / 255) / np.log(50 / 99) for crop in dark if crop.max() == 255]
    assert 0.95 < min(powers) < 1.1 and 3.5 < max(powers) < 4.3
    assert np.array_equal(darkened(0 * image, generator, lamps=1), 0 * image)


def test_without_lamps_darkening_draws_the_same_numbers():
    generator, drawn = np.random.default_rng(5), np.random.default_rng(5)
    darkened(np.arange(256, dtype=np.uint8), generator)
    drawn.random(2)         # a factor and a power
    assert generator.random() == drawn.random()


def test_same_seed_same_crops_whatever_the_workers(pairs):
    batches = list(crop_batches(epoch=1, length=20, batch=6))
    runs = [torch.cat([ir for ir, _ in DataLoader(CropDataset(pairs, 16, seed, flips=True), batch_sampler=batches,
                                                  num_workers=workers)])
            for seed, workers in ((7, 0), (7, 2), (8, 0))]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_every_epoch_has_new_crops():
    epochs = [[number for batch in crop_batches(epoch, 20, 6) for number in batch] for epoch in range(3)]
    assert len({*epochs[0], *epochs[1], *epochs[2]}) == 60
    assert [len(batch) for batch in crop_batches(1, 20, 6)] == [6, 6, 6, 2]


def test_fixed_crops_are_the_same_in_another_order_in_each_epoch():
    epochs = [[number for batch in crop_batches(epoch, 20, 6, fixed_seed=3) for number in batch] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert list(crop_batches(0, 20, 6, fixed_seed=3)) != list(crop_batches(0, 20, 6, fixed_seed=4))


@pytest.mark.parametrize("fixed_seed", [None, 3])
def test_an_epoch_goes_on_where_it_was_left(fixed_seed):
    batches = list(crop_batches(1, 20, 6, fixed_seed=fixed_seed))
    for start in range(5):
        assert list(crop_batches(1, 20, 6, start, fixed_seed)) == batches[start:]


def test_images_smaller_than_a_crop_are_mirrored_up_to_twice(pairs):
    image = np.arange(40 * 50).reshape(1, 40, 50)
    pairs.items = [(image, image)]
    for number in range(8):
        crop, _ = CropDataset(pairs, 45, 0)[number]
        assert crop.shape == (1, 45, 45)
        assert np.array_equal(crop[:, 40:], crop[:, 35:40][:, ::-1])
    with pytest.raises(DataError, match=r"half of the 81x81 training crop \(lower --crop, or .*\):\n  0: 50x40"):
        CropDataset(pairs, 81)


# --- options of the commands ---


def sources(*words):
    parser = argparse.ArgumentParser()
    add_source_options(parser)
    add_reading_options(parser)
    return parser.parse_args([str(word) for word in words])


def test_a_data_set_goes_without_folders_and_a_split_with_a_data_set(tmp_path):
    save(tmp_path / "IR1.bmp"), save(tmp_path / "VIS1.bmp")
    pairs, unpaired = find_sources(sources("--dataset", "tno", "--data", tmp_path))
    assert [pair.name for pair in pairs] == ["1"] and not unpaired
    assert find_sources(sources()) is None
    for words in (("--dataset", "tno"), ("--data", tmp_path), ("--dataset", "tno", "--data", tmp_path, "--ir", tmp_path),
                  ("--dataset", "tno", "--data", tmp_path, "--ir-pattern", "*"), ("--ir", tmp_path)):
        with pytest.raises(DataError, match="go together"):
            find_sources(sources(*words))
    with pytest.raises(DataError, match="--split"):
        find_sources(sources("--ir", tmp_path, "--vis", tmp_path, "--split", "val"))


def test_options_of_sources_and_of_their_reading(tmp_path):
    save(tmp_path / "ir" / "cold_7.png"), save(tmp_path / "vis" / "7_day.png")
    args = sources("--ir", tmp_path / "ir", "--vis", tmp_path / "vis", "--ir-pattern", "cold_*", "--vis-pattern", "*_day",
                   "--resize", "vis", "--ir-range", 5, 9, "--vis-bits", 10)
    assert [pair.name for pair in find_sources(args)[0]] == ["7"]
    assert reader(args).keywords == {"resize": "vis", "span": [5, 9], "bits": 10}
    for words in (("--ir-range", 9, 5), ("--vis-bits", 7), ("--vis-bits", 17)):
        with pytest.raises(SystemExit):
            sources(*words)


def test_crops_reach_each_edge(pairs):
    pairs.items = [(np.arange(20 * 50).reshape(1, 20, 50),) * 2]
    first = [int(CropDataset(pairs, 16, 0)[number][0].min()) for number in range(600)]
    assert {place // 50 for place in first} == {*range(5)} and {place % 50 for place in first} == {*range(35)}


def test_resizing_averages_to_shrink_and_interpolates_to_enlarge():
    image = gray(20, 30)
    assert np.abs(resized(image, (10, 15)) - image.reshape(10, 2, 15, 2).mean((1, 3))).max() <= 0.5
    assert resized(np.array([[0, 200]] * 2, np.uint8), (4, 4))[0].tolist() == [0, 50, 150, 200]


@pytest.mark.parametrize("shape", [(20, 60), (20, 29), (20, 31), (20, 16)])
def test_proportions_may_differ_by_two_percent(shape):
    pair = Pair("a", Path("ir.png"), Path("vis.png"))
    with pytest.raises(DataError, match="not the same field of view"):
        of_one_size(pair, gray(40, 60), gray(*shape), "ir")
    assert of_one_size(pair, gray(100, 199), gray(50, 100), "ir")[0].shape == (50, 100)


def test_a_range_of_sizes_is_by_area(tmp_path):
    pairs = []
    for n, shape in enumerate([(20, 100), (90, 30), (50, 30)]):
        cv2.imwrite(str(tmp_path / f"{n}.png"), np.zeros(shape, np.uint8))
        pairs.append(Pair(str(n), tmp_path / f"{n}.png", tmp_path / f"{n}.png"))
    assert dataset.describe(pairs) == "3 pairs, 30x50 to 30x90, visible in colour: 0"


def test_another_number_of_pairs_than_published_is_said(tmp_path, capsys):
    for name in ("IR1.bmp", "VIS1.bmp"):
        cv2.imwrite(str(tmp_path / name), np.zeros((20, 30), np.uint8))
    assert dataset.main(["tno", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "tno all: 1 pairs, 30x20, visible in colour: 0 (the published set has 40)\n"
