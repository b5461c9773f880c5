"""What is read from a compiled program's text: how often it runs, the bytes that it moves, its collectives."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from entropy_rl.preflight import collectives, hlo, traffic

TEXT = """HloModule jit_f, is_scheduled=true

%sliced (p0: bf16[6,128,512], p1: s32[]) -> bf16[1,128,512] {
  %p0 = bf16[6,128,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %ds = bf16[1,128,512]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,128,512}
}

%known_body (b: (s32[], bf16[6,128,512])) -> (s32[], bf16[6,128,512]) {
  %b = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%b), index=0
  %w = bf16[6,128,512]{2,1,0:T(8,128)(2,1)} get-tuple-element(%b), index=1
  %slice = bf16[1,128,512]{2,1,0:T(8,128)(2,1)} fusion(%w, %n), kind=kLoop, calls=%sliced, metadata={op_name="layer/slice"}
  %gather = bf16[1,512,512]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%slice), channel_id=5, replica_groups=[1,4]<=[4], dimensions={1}
  ROOT %t = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) tuple(%n, %w)
}

%known_cond (c: (s32[], bf16[6,128,512])) -> pred[] {
  %six = s32[]{:T(128)} constant(6)
  %c = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %six), direction=LT
}

%data_cond (c2: (s32[], bf16[6,128,512])) -> pred[] {
  %c2 = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i2 = s32[]{:T(128)} get-tuple-element(%c2), index=0
  ROOT %lt2 = pred[]{:T(512)} compare(%i2, %i2), direction=LT
}

%outer (o: (s32[], bf16[6,128,512])) -> (s32[], bf16[6,128,512]) {
  %o = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %inner = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) while(%o), condition=%known_cond, body=%known_body
}

ENTRY %main (x: s32[], y: bf16[6,128,512]) -> (s32[], bf16[6,128,512]) {
  %x = s32[]{:T(128)} parameter(0)
  %y = bf16[6,128,512]{2,1,0:T(8,128)(2,1)} parameter(1)
  %both = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) tuple(%x, %y)
  ROOT %loop = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) while(%both), condition=%data_cond, body=%outer, metadata={op_name="jit(f)/jvp()/update_pieces/while"}
}
"""  # noqa: E501
TRIPS = {"update_pieces": 5}
SLICE = 128 * 512 * 2  # bytes of one layer's weights


def test_loops_count_by_their_bound_or_by_their_scope():
    times = {instruction.name: n for n, instruction, _ in hlo.read(TEXT).walk(TRIPS)}
    assert times["loop"] == 1 and times["inner"] == 5 and times["gather"] == times["slice"] == 30


def test_a_loop_of_unknown_length_is_an_error():
    with pytest.raises(ValueError, match=r"written under 'jit\(f\)/jvp\(\)/update_pieces'.*which has other"):
        list(hlo.read(TEXT).walk({"other": 5}))


def test_a_bound_inside_a_fused_condition_is_read():
    fused = """%less (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %compare = pred[] compare(%a, %b), direction=LT
}

%known_body"""
    end = "ROOT %lt = pred[]{:T(512)} compare(%i, %six), direction=LT"
    within = "ROOT %lt = pred[]{:T(512)} fusion(%i, %six), kind=kLoop, calls=%less"
    assert TEXT.count("%known_body (b") == 1 and TEXT.count(end) == 1
    program = hlo.read(TEXT.replace("%known_body (b", fused + " (b").replace(end, within))
    assert {n for n, instruction, _ in program.walk(TRIPS) if instruction.name == "gather"} == {30}


def test_of_a_sliced_operand_only_the_slice_is_moved():
    # the fusion reads a slice, its index and writes it; the gather reads it, and its result stays in scratch memory
    assert traffic.bytes_moved(hlo.read(TEXT), TRIPS) == pytest.approx(30 * (3 * SLICE + 4), rel=1e-3)
    assert traffic.largest(hlo.read(TEXT), 1) == [(SLICE, "bf16[1,128,512]", "layer/slice")]


def test_of_an_operand_sliced_in_a_nested_fusion_only_the_slice_is_moved():
    """In this way the products on a TPU take a layer's weights out of the stacked ones."""
    rows = 128 * 2
    nested = """%product (w: bf16[6,128,512], n: s32[], x: bf16[1,128]) -> bf16[1,512] {
  %w = bf16[6,128,512]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %x = bf16[1,128]{1,0} parameter(2)
  %layer = bf16[1,128,512]{2,1,0} fusion(%w, %n), kind=kLoop, calls=%sliced
  ROOT %dot = bf16[1,512]{1,0} custom-call(%x, %layer)
}

%known_body"""
    fusion = "%slice = bf16[1,128,512]{2,1,0:T(8,128)(2,1)} fusion(%w, %n), kind=kLoop, calls=%sliced"
    within = "%x = bf16[1,128]{1,0} constant({...})\n"
    within += "  %slice = bf16[1,512]{1,0} fusion(%w, %n, %x), kind=kOutput, calls=%product"
    assert TEXT.count("%known_body (b") == 1 and TEXT.count(fusion) == 1
    program = hlo.read(TEXT.replace("%known_body (b", nested + " (b").replace(fusion, within))
    body = program.computations["known_body"]
    assert traffic.bytes_of(program, body["slice"], body) == SLICE + 4 + rows + 512 * 2


def test_of_a_buffer_updated_in_place_only_the_update_is_moved():
    text = """HloModule one

%updated (all: f32[64,512], new: f32[1,512], n: s32[]) -> f32[64,512] {
  %all = f32[64,512]{1,0} parameter(0)
  %new = f32[1,512]{1,0} parameter(1)
  %n = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %update = f32[64,512]{1,0} dynamic-update-slice(%all, %new, %n, %zero)
}

ENTRY %main (all: f32[64,512], new: f32[1,512], n: s32[]) -> f32[64,512] {
  %all = f32[64,512]{1,0} parameter(0)
  %new = f32[1,512]{1,0} parameter(1)
  %n = s32[] parameter(2)
  %zero = s32[] constant(0)
  %plain = f32[64,512]{1,0} dynamic-update-slice(%all, %new, %n, %zero)
  ROOT %fused = f32[64,512]{1,0} fusion(%plain, %new, %n), kind=kLoop, calls=%updated
}
"""
    program, row = hlo.read(text), 512 * 4
    main = program.computations["main"]
    assert traffic.bytes_of(program, main["plain"], main) == 2 * row
    assert traffic.bytes_of(program, main["fused"], main) == 2 * row + 4  # the index too


def test_the_buffers_of_a_collective_beside_a_fusion_are_not_moved_by_the_fusion():
    """A gather that runs while a product is computed is handed through the product's fusion, with both its buffers."""
    text = """HloModule one

%async_collective (own: bf16[128,64], all: bf16[128,512], x: bf16[8,16]) -> (bf16[8,16]) {
  %own = bf16[128,64]{1,0} parameter(0)
  %all = bf16[128,512]{1,0} parameter(1)
  %x = bf16[8,16]{1,0} parameter(2)
  %gather = bf16[128,512]{1,0} all-gather(%own), channel_id=4, replica_groups=[1,8]<=[8], dimensions={1}
  %y = bf16[8,16]{1,0} add(%x, %x)
  ROOT %all_of_it = (bf16[8,16]{1,0}, bf16[128,64]{1,0}, bf16[128,512]{1,0}) tuple(%y, %own, %gather)
}

ENTRY %main (own: bf16[128,64], all: bf16[128,512], x: bf16[8,16]) -> (bf16[8,16], bf16[128,64], bf16[128,512]) {
  %own = bf16[128,64]{1,0} parameter(0)
  %all = bf16[128,512]{1,0} parameter(1)
  %x = bf16[8,16]{1,0} parameter(2)
  ROOT %b = (bf16[8,16]{1,0}, bf16[128,64]{1,0}, bf16[128,512]{1,0}) fusion(%own, %all, %x), calls=%async_collective
}
"""
    assert traffic.bytes_moved(hlo.read(text), TRIPS) == 2 * 8 * 16 * 2


def test_collectives_by_kind_bytes_and_axis():
    (found,) = collectives.find(hlo.read(TEXT), TRIPS)
    assert (found.kind, found.times, found.size, found.group) == ("all-gather", 30, 512 * 512 * 2, (0, 1, 2, 3))
    assert found.sent() == 512 * 512 * 2 * 3 / 4 and not found.overlapped
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(1, 2, 2), ("data", "fsdp", "tensor"))
    assert collectives.axes(found, mesh) == "fsdp+tensor"
