"""The codebook: k-means against a plain one, its start, revival, and two processes that share it."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from mimkit.codebook import kmeans
from mimkit.types import Mask
from tests.quantizers import batch, quantizer, run


def lloyd(samples, means, iterations):
    """Cosine k-means by hand, row by row."""
    for _ in range(iterations):
        label = [max(range(len(means)), key=lambda k: (float(row @ means[k]), -k)) for row in samples]
        groups = [[row for row, k in zip(samples, label, strict=True) if k == number] for number in range(len(means))]
        means = [
            sum(g) / torch.linalg.vector_norm(sum(g)) if g else mean for g, mean in zip(groups, means, strict=True)
        ]
    return torch.stack(list(means))


@pytest.mark.parametrize(("rows", "size"), [(40, 6), (5, 9)], ids=["many rows", "fewer rows than codes"])
def test_kmeans_is_ten_rounds_of_lloyd(rows, size):
    """By hand; where there are fewer rows than codes, rows repeat and most clusters stay empty."""
    samples = F.normalize(torch.randn(rows, 3, dtype=torch.float64), dim=1)
    torch.manual_seed(1)
    index = torch.randperm(rows)[:size] if rows >= size else torch.randint(rows, (size,))
    wanted = lloyd(samples, samples[index], 10)
    torch.manual_seed(1)
    torch.testing.assert_close(kmeans(samples, size), wanted)
    assert not torch.allclose(lloyd(samples, samples[index], 1), wanted) or rows < size


def test_the_codebook_starts_at_the_means_of_the_first_training_batch():
    """And only there: not in eval mode, not again, not after its state was loaded."""
    head, (tokens, _, mask) = quantizer(decay=0.999999), batch(2)
    run(head.eval(), tokens, mask)
    assert not head.codebook.any()
    torch.manual_seed(6)
    run(head.train(), tokens, mask)
    torch.manual_seed(6)
    z = F.normalize(head.encode(tokens[:, 1:]), dim=-1).detach().flatten(0, 1)
    torch.testing.assert_close(head.codebook, kmeans(z, 12), rtol=0, atol=1e-5)
    for head_again in (head, quantizer(decay=0.999999)):
        head_again.load_state_dict(head.state_dict())
        before = head.codebook.clone()
        run(head_again.train(), batch(3)[0], mask)
        torch.testing.assert_close(head_again.codebook, before, rtol=0, atol=1e-5)


def test_a_blank_state_that_is_loaded_starts_anew():
    head, (tokens, _, mask) = quantizer(), batch(2)
    blank = {name: value.clone() for name, value in head.state_dict().items()}
    results = []
    for _ in range(2):
        head.load_state_dict(blank)
        torch.manual_seed(6)
        run(head.train(), tokens, mask)
        results.append(head.codebook.clone())
    assert results[0].any() and torch.equal(*results)


@pytest.mark.parametrize("revive", [False, True])
def test_codes_out_of_use_become_vectors_of_the_batch(revive):
    """All vectors alike: one code takes them; the others stay as they are, or become the vector."""
    head, (tokens, _, mask) = quantizer(kmeans_init=False, revive=revive).train(), batch(2)
    tokens = tokens[:1, :1].expand(5, 7, -1)
    before = head.codebook.clone()
    out = run(head, tokens, mask)
    z = F.normalize(head.encode(tokens[0, 0]), dim=-1).detach()
    used = int((before @ z).argmax())
    others = [code for code in range(12) if code != used]
    wanted = z.expand(11, -1) if revive else before[others]
    torch.testing.assert_close(head.codebook[others], wanted)
    assert float(out.metrics["codes_used"]) == pytest.approx(1 / 12)
    assert float(head.counts[used]) == pytest.approx(0.01 * 30)
    assert head.counts[others].tolist() == pytest.approx([0.01 * 30 / 12 if revive else 0.0] * 11)


def ranked(rank, ports, tokens, hidden, results):
    """One of two processes: two training steps on its half of the batch, the first of them the k-means start."""
    dist.init_process_group("gloo", init_method=f"file://{ports}", rank=rank, world_size=2)
    head = quantizer(decay=0.7, revive=True).train()
    torch.manual_seed(8 + rank)
    half = slice(rank * 2, rank * 2 + 2)
    for step in tokens:
        out = run(head, step[half], Mask.from_hidden(hidden[half], predicted=~hidden[half]))
    results.put((rank, head.codebook.tolist(), head.counts.tolist(), float(out.metrics["perplexity"])))
    dist.destroy_process_group()


def test_two_processes_share_one_codebook(tmp_path):
    """Equal codebooks, and those of one process with the joined batch."""
    tokens, hidden = [batch(seed, 4)[0] for seed in (3, 4)], torch.zeros(4, 6, dtype=torch.bool)
    context = torch.multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = (tmp_path / "meeting", tokens, hidden, results)
    workers = [context.Process(target=ranked, args=(rank, *arguments)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = {rank: rest for rank, *rest in (results.get(timeout=60) for _ in workers)}
    for worker in workers:
        worker.join()
    head = quantizer(decay=0.7, revive=True).train()
    torch.manual_seed(8)
    for step in tokens:
        out = run(head, step, Mask.from_hidden(hidden, predicted=~hidden))
    assert found[0] == found[1]
    torch.testing.assert_close(torch.tensor(found[0][0], dtype=torch.float64), head.codebook)
    torch.testing.assert_close(torch.tensor(found[0][1], dtype=torch.float64), head.counts)
    assert found[0][2] == pytest.approx(float(out.metrics["perplexity"]))
