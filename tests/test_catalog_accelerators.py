"""Accelerators: every shipped entry is physically plausible and found by the names people use; user files override."""

from __future__ import annotations

import contextlib
import csv
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gambrel.catalog.accelerators import accelerator, accelerators
from gambrel.catalog.efficiency import kernel_efficiency
from gambrel.catalog.tables import FAMILIES, fold, shipped_prices, tables
from gambrel.core.accelerator import Accelerator, Price
from gambrel.core.errors import CatalogError, UnknownName
from gambrel.core.units import GB

NAMES = sorted(accelerators())

# Dense bf16 or fp16 FLOP/s that no entry of a family may pass: the family's largest part on its data sheet. A figure
# above it has counted 2:4 sparsity.
DENSE_CEILING = {
    "volta": 131e12,
    "turing": 66e12,
    "ampere": 313e12,
    "ada": 366e12,
    "hopper": 990e12,
    "blackwell": 2510e12,
    "davinci": 401e12,
    "musa": 101e12,
    "cdna2": 384e12,
    "cdna3": 1308e12,
    "cdna4": 2520e12,
    "xe": 840e12,
    "tpu": 2310e12,
    "gaudi": 1860e12,
    "neuron": 670e12,
    "apple": 60e12,
    "cpu": 300e12,
}

# fp8 over bf16 where it is not the usual 2: the unit runs both at one rate.
FP8_AT_BF16_RATE = {"gaudi3", "inferentia2", "tpu-v5p", "tpu-v6e"}


@pytest.mark.parametrize("name", NAMES)
def test_entry_is_plausible(name: str) -> None:
    device = accelerator(name)
    assert device.name == name
    assert device.family in FAMILIES
    assert device.source
    assert "2026-" in device.source
    assert device.confidence in {"A", "B", "C"}
    assert device.title.startswith(device.vendor) or device.family in {"apple", "tpu"}
    assert all(flops > 0 for flops in device.peak_flops.values())
    assert 8 * GB < device.memory_bytes < 1000 * GB
    assert 200 * GB < device.memory_bandwidth <= 8000 * GB
    assert device.link_bandwidth >= 0
    assert (device.link == "none") == (device.link_bandwidth == 0)
    assert 1 <= (device.link_domain or 1) <= device.max_tp <= 72
    assert device.year is not None
    assert 2017 <= device.year <= 2026
    if device.max_tp > 1:
        assert device.peer_bandwidth(device.max_tp) > 0


@pytest.mark.parametrize("name", NAMES)
def test_peaks_are_dense_and_consistent(name: str) -> None:
    device = accelerator(name)
    peaks = device.peak_flops
    wide = peaks.get("bf16") or peaks.get("fp16")
    if wide is None:
        assert "16-bit" in device.notes
        return
    assert wide <= DENSE_CEILING[device.family]
    if "bf16" in peaks and "fp16" in peaks:
        assert peaks["bf16"] == peaks["fp16"]
    if "fp8" in peaks:
        assert peaks["fp8"] / wide == pytest.approx(1.0 if name in FP8_AT_BF16_RATE else 2.0, rel=0.04)
    if "fp4" in peaks and "fp8" in peaks:
        assert 1.99 <= peaks["fp4"] / peaks["fp8"] <= 4.0
    ridge = wide / device.memory_bandwidth
    assert 25 < ridge < 750, "FLOPs per byte of any known part lie between H20's 37 and the Xeon's 745"


@pytest.mark.parametrize(
    ("name", "ridge"),
    [
        ("h20", 37), ("a100-sxm-80", 153), ("rtx-4090", 164), ("h200-sxm", 206), ("tpu-v5e", 240),
        ("mi300x", 247), ("h100-sxm", 295.2), ("l4", 403), ("l40s", 419),
    ],
)  # fmt: skip
def test_published_ridge_points(name: str, ridge: float) -> None:
    assert accelerator(name).ridge("bf16") == pytest.approx(ridge, rel=5e-3)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("H100", "h100-sxm"), ("h100", "h100-sxm"), ("H100-SXM-80GB", "h100-sxm"), ("H100 SXM5 80 GB", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"), ("H100-PCIE-80GB", "h100-pcie"), ("NVIDIA H100 PCIe", "h100-pcie"),
        ("A100", "a100-sxm-80"), ("A100-SXM-80GB", "a100-sxm-80"), ("NVIDIA A100-SXM4-80GB", "a100-sxm-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm-40"), ("A100-PCIE-40GB", "a100-pcie-40"),
        ("RTX-4090-24GB", "rtx-4090"), ("NVIDIA GeForce RTX 4090", "rtx-4090"), ("4090", "rtx-4090"),
        ("B200-SXM-180GB", "b200-sxm"), ("MI300X", "mi300x"), ("AMD Instinct MI300X", "mi300x"),
        ("Tesla T4", "t4"), ("Tesla V100-SXM2-32GB", "v100-sxm2-32"), ("L40S-48GB", "l40s"),
        ("GH200-120GB", "gh200-96"), ("GB200-186GB", "gb200"),
        ("TPU v5e", "tpu-v5e"), ("Apple M3 Ultra", "apple-m3-ultra"), ("a40", "a40"),
    ],
)  # fmt: skip
def test_spellings(spelling: str, name: str) -> None:
    assert accelerator(spelling).name == name


def test_no_spelling_stands_for_two() -> None:
    owners: dict[str, str] = {}
    for name, row in tables().accelerators.items():
        for spelling in (name, row["title"], *row.get("aliases", ())):
            assert owners.setdefault(fold(spelling), name) == name, spelling


@given(st.sampled_from(NAMES), st.sampled_from(["-", " ", "_", "/"]), st.booleans())
def test_case_and_separators_do_not_matter(name: str, separator: str, upper: bool) -> None:
    spelt = name.replace("-", separator)
    assert accelerator(spelt.upper() if upper else spelt).name == name


@given(st.text(max_size=40))
def test_any_name_resolves_or_is_unknown(name: str) -> None:
    try:
        found = accelerator(name)
    except UnknownName as error:
        nearest = error.nearest
    else:
        nearest = (found.name,)
    assert 1 <= len(nearest) <= 3
    assert set(nearest) <= set(NAMES)


def test_unknown_lists_the_nearest_three() -> None:
    with pytest.raises(UnknownName, match="h100-sxm") as caught:
        accelerator("h100-smx")
    assert len(caught.value.nearest) == 3


def test_known_absent_says_why() -> None:
    with pytest.raises(UnknownName, match="dataflow"):
        accelerator("SN40L")


def test_link_joins_only_its_domain() -> None:
    bridged = accelerator("h100-pcie")
    assert bridged.peer_bandwidth(2) == bridged.link_bandwidth == 300e9
    assert bridged.peer_bandwidth(4) == bridged.pcie_bandwidth == 64e9
    assert accelerator("h100-sxm").peer_bandwidth(8) == 450e9
    assert accelerator("gb200").peer_bandwidth(72) == 900e9
    assert accelerator("l40s").peer_bandwidth(4) == 32e9


def test_accelerators_are_values() -> None:
    assert accelerator("H100") == accelerator("h100-sxm")
    assert len({accelerator("H100"), accelerator("h100-sxm"), accelerator("H100", price=1.0)}) == 2


def test_cold_lookup_is_fast() -> None:
    from gambrel.catalog import tables as module

    seconds = []
    for _ in range(5):
        module._shipped.cache_clear()
        module.shipped_prices.cache_clear()
        start = time.process_time()
        accelerator("h100-sxm")
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.040  # 16 ms on a quiet machine


# --- user files -------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


NEW = """
[accelerators.my-card]
family = "hopper"
peak_flops = { bf16 = 500e12, fp8 = 1000e12 }
memory_bytes = 64e9
memory_bandwidth = 2000e9
"""


def test_user_file_adds(tmp_path: Path) -> None:
    card = accelerator("MY-CARD", files=[write(tmp_path / "a.toml", NEW)])
    assert (card.name, card.title, card.confidence) == ("my-card", "my-card", "user")
    assert card.source == "user file a.toml"
    assert card.ridge() == 250
    assert card.price is None
    assert set(accelerators([tmp_path / "a.toml"])) == {*NAMES, "my-card"}
    with pytest.raises(UnknownName):
        accelerator("my-card")


def test_user_file_overrides_field_by_field(tmp_path: Path) -> None:
    shipped = accelerator("h100-sxm")
    ours = accelerator("H100", files=[write(tmp_path / "a.toml", "[accelerators.H100]\nmemory_bandwidth = 3000e9\n")])
    assert ours.name == "h100-sxm"
    assert ours.memory_bandwidth == 3000e9
    assert ours.peak_flops == shipped.peak_flops
    assert ours.title == shipped.title
    assert ours.source.startswith("user file a.toml")


def test_like_starts_from_a_known_one(tmp_path: Path) -> None:
    text = '[accelerators.h100-capped]\nlike = "H100"\ntdp_w = 500\n'
    capped = accelerator("h100-capped", files=[write(tmp_path / "a.toml", text)])
    assert capped.tdp_w == 500
    assert capped.memory_bandwidth == accelerator("h100-sxm").memory_bandwidth
    assert accelerator("H100", files=[tmp_path / "a.toml"]).tdp_w == 700


def test_files_apply_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gambrel").mkdir()
    line = "[accelerators.l4]\ntdp_w = {}\n"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert accelerator("l4").tdp_w == 72
    write(tmp_path / "gambrel" / "catalog.toml", line.format(1))
    assert accelerator("l4").tdp_w == 1
    monkeypatch.setenv("GAMBREL_CATALOG", str(write(tmp_path / "env.toml", line.format(2))))
    assert accelerator("l4").tdp_w == 2
    assert accelerator("l4", files=[write(tmp_path / "arg.toml", line.format(3))]).tdp_w == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[accelerators.x]\nfamily = 'hopper'\n", r"\[accelerators.x\]: lacks peak_flops, memory_bytes"),
        (NEW.replace("64e9", "'80 GB'"), r"memory_bytes: must be bytes .* got '80 GB'"),
        (NEW.replace("2000e9", "2000"), r"memory_bandwidth: must be bytes/s \(3350 GB/s is 3350e9\).*got 2000"),
        (NEW.replace("64e9", "nan"), "memory_bytes: must be bytes"),
        (NEW.replace("64e9", "true"), "memory_bytes: must be bytes"),
        (NEW.replace("500e12", "500"), "peak_flops: must be a table of dense FLOP/s"),
        (NEW.replace("bf16", "bf17"), "peak_flops: must be .* formats bf16"),
        (NEW.replace("hopper", "hoper"), "family: must be one of volta"),
        (NEW + "tpd_w = 3\n", "unknown field 'tpd_w', nearest 'tdp_w'"),
        (NEW + "max_tp = 0\n", "max_tp: must be a whole number"),
        ("accelerators = 3\n", "accelerators: write each as its own"),
        ("[accelerators]\nx = 3\n", "accelerators: write each as its own"),
        ("[accelerators.x]\nlike = 'h1000'\n", "like: unknown accelerator 'h1000'; nearest"),
        ("[accelerators.x]\nlike = 3\n", "like: must be the name"),
        ("[gpus.x]\n", "unknown table 'gpus'"),
        ("x = 1 = 2", "not TOML: .*line 1"),
        ("prices = 3\n", "prices: write each price"),
        ("prices = [3]\n", r"\[\[prices\]\] 1: must be a table"),
        ("[[prices]]\naccelerator = 'h100'\n", r"\[\[prices\]\] 1: lacks usd_per_hour"),
        ("[[prices]]\naccelerator = 'h1oo'\nusd_per_hour = 1\n", "unknown accelerator 'h1oo'; nearest"),
        ("[[prices]]\naccelerator = 'h100'\nusd_per_hour = -1\n", "usd_per_hour: must be dollars"),
        ("[[prices]]\naccelerator = 'h100'\nusd_per_hour = 1\nkind = 'free'\n", "kind: must be one of on_demand"),
    ],
)
def test_bad_user_file_is_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path / "bad.toml", text)
    with pytest.raises(CatalogError, match=says) as caught:
        accelerators([path])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_user_files(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="cannot be read"):
        accelerators([tmp_path / "none.toml"])
    with pytest.raises(CatalogError, match="cannot be read"):
        accelerators([tmp_path])
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(CatalogError, match="not UTF-8"):
        accelerators([tmp_path / "latin.toml"])


@given(st.binary(max_size=200))
def test_random_bytes_never_pass_as_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.toml"
    path.write_bytes(data)
    with contextlib.suppress(CatalogError):
        accelerators([path])


# --- the price of a deployment -----------------------------------------------------------------------------------


def test_price_for_a_group_needs_a_machine_that_holds_it() -> None:
    single, eight = Price(1.0, "p", gpu_count=1), Price(2.0, "p", gpu_count=8)
    device = Accelerator(
        "x", "X", "v", "hopper", {"bf16": 1e14}, 1e11, 1e12, price=single, offers=(single, eight), max_tp=8
    )
    assert device.price_for(1) == single
    assert device.price_for(2) == device.price_for(8) == eight
    assert device.price_for(16) == single  # no machine is known to hold it: the plain price


def test_four_l4_cost_more_than_four_single_ones() -> None:
    l4 = accelerator("l4", provider="aws")
    one, four = l4.price_for(1), l4.price_for(4)
    assert one is not None
    assert four is not None
    assert (one.instance_type, four.instance_type) == ("g6.xlarge", "g6.12xlarge")
    assert one.usd_per_hour < four.usd_per_hour == 4.6016 / 4


# --- against the measurements kept beside the checkout ------------------------------------------------------------


@pytest.mark.shared
def test_every_measured_gpu_resolves_or_is_known_absent(shared_data: Path) -> None:
    known = tables()
    seen: set[str] = set()
    for path in sorted((shared_data / "ground_truth").rglob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            seen.update(row["gpu"] for row in csv.DictReader(file) if row.get("gpu"))
    assert len(seen) >= 20
    lost = {gpu for gpu in seen if fold(gpu) not in known.spellings and fold(gpu) not in known.absent}
    assert not lost


@pytest.mark.shared
def test_figures_agree_with_the_collected_table(shared_data: Path) -> None:
    with (shared_data / "gpus.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ours = accelerators()
    assert {row["id"] for row in rows} <= set(ours)
    for row in rows:
        device = ours[row["id"]]
        assert device.memory_bandwidth == pytest.approx(float(row["mem_bw_gbps"]) * 1e9)
        assert device.memory_bytes == pytest.approx(float(row["mem_gib_usable"]) * 2**30)
        for column, fmt in (("bf16_tflops", "bf16"), ("fp16_tflops", "fp16"), ("fp8_tflops", "fp8")):
            if row[column]:
                assert device.peak_flops[fmt] == pytest.approx(float(row[column]) * 1e12), (row["id"], fmt)
        assert device.confidence == row["confidence"]


@pytest.mark.parametrize("name", [n for n in NAMES if accelerator(n).devices > 1])
def test_the_devices_of_a_package_add_up_to_it(name: str) -> None:
    package = accelerator(name)
    one, n = accelerator(package.device), package.devices
    assert one.devices == 1
    assert package.tdp_w is not None
    assert package.l2_bytes is not None
    assert {fmt: flops / n for fmt, flops in package.peak_flops.items()} == pytest.approx(dict(one.peak_flops))
    for field in ("memory_bytes", "memory_bandwidth", "link_bandwidth", "pcie_bandwidth", "tdp_w", "l2_bytes"):
        assert getattr(one, field) * n == pytest.approx(getattr(package, field)), field
    assert one.max_tp == package.max_tp * n
    assert package.device in kernel_efficiency(package).basis


def test_doc_walks_through_a_file_that_works(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "catalog.md").read_text(encoding="utf-8")
    assert f"{len(NAMES)} accelerators" in text
    assert f"{sum(map(len, shipped_prices().values()))}\nprices" in text
    blocks = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        accelerators([write(tmp_path / f"{number}.toml", block)])
    assert [f for f in ("like =", "usd_per_hour", "GAMBREL_CATALOG", "link_domain") if f not in text] == []
