"""Kept memory is used again only when nobody holds what lies in it."""

import threading

import torch

from detr_hf.model.kept_memory_detr import KeptMemory

from ..conftest import tiny_model

MIB = 2**20


def test_memory_is_used_again_once_nobody_holds_it():
    memory = KeptMemory()
    first = memory.zeros((1, 64, 256, 256), torch.float32)
    assert first.is_contiguous(memory_format=torch.channels_last) and not first.any()
    address = first.data_ptr()
    part = first.fill_(1)[:, :3]
    del first
    assert memory.zeros((1, 64, 256, 256), torch.float32).data_ptr() != address  # `part` lies there
    assert part.min() == 1
    del part
    again = memory.zeros((1, 60, 256, 256), torch.float32)
    assert again.data_ptr() == address and not again.any()


def test_small_and_enormous_maps_take_new_memory(monkeypatch):
    memory = KeptMemory()
    assert memory.zeros((1, 8, 16, 16), torch.float32) is None
    monkeypatch.setattr("detr_hf.model.kept_memory_detr.KEPT_AT_MOST", 13 * MIB)
    assert memory.zeros((1, 64, 256, 256), torch.float32) is None
    assert not memory._blocks


def test_what_is_kept_stays_below_the_limit(monkeypatch):
    monkeypatch.setattr("detr_hf.model.kept_memory_detr.KEPT_AT_MOST", 40 * MIB)
    memory, held = KeptMemory(), []
    for height in (208, 256, 304, 352, 256, 208):
        held.append(memory.zeros((1, 64, 256, height), torch.float32))
        assert sum(map(len, memory._blocks)) <= 40 * MIB
        held = held[-2:]
    assert len({values.data_ptr() for values in held}) == 2


def test_a_new_block_takes_the_place_of_a_smaller_one():
    memory = KeptMemory()
    for height in (208, 256, 304, 352):
        memory.zeros((1, 64, 256, height), torch.float32)
    assert [len(block) for block in memory._blocks] == [64 * 256 * 352 * 4]


def test_released_memory_is_freed_and_does_not_touch_what_lies_in_it():
    memory = KeptMemory()
    values = memory.zeros((1, 64, 256, 256), torch.float32).fill_(1)
    memory.release()
    assert not memory._blocks
    assert memory.zeros((1, 64, 256, 256), torch.float32).data_ptr() != values.data_ptr() and values.min() == 1


def test_training_gives_the_memory_of_inference_back(monkeypatch):
    monkeypatch.setattr("detr_hf.model.kept_memory_detr.LARGE", 1)
    model = tiny_model(backbone="resnet50", backbone_kwargs=None)
    memory = model.backbone[0].inference_body.memory
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    assert memory._blocks
    model.train()
    assert not memory._blocks


def test_threads_do_not_share_a_block():
    memory, found, barrier = KeptMemory(), [], threading.Barrier(4)

    def work():
        barrier.wait()
        for _ in range(20):
            values = memory.zeros((1, 48, 256, 256), torch.float32)
            values.fill_(threading.get_ident() % 1000)
            found.append(bool((values == threading.get_ident() % 1000).all()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80 and all(found)


def test_inference_mode_and_no_grad_share_memory():
    memory = KeptMemory()
    with torch.inference_mode():
        address = memory.zeros((1, 64, 256, 256), torch.float32).data_ptr()
    with torch.no_grad():
        values = memory.zeros((1, 64, 256, 256), torch.float32)
        values.add_(1)
    assert values.data_ptr() == address and not values.is_inference()


def test_without_counts_of_uses_nothing_is_kept(monkeypatch):
    monkeypatch.setattr("detr_hf.model.kept_memory_detr._counts_uses", lambda: False)
    assert KeptMemory().zeros((1, 64, 256, 256), torch.float32) is None
