"""Comparison of two sets of features: Fréchet distance, and fidelity and coverage by nearest neighbors.

With I3D logits the Fréchet distance is FVD (Unterthiner et al. 2018, arXiv:1812.01717).

rFVD is the FVD between clips and their reconstructions. It falls with the number of clips and depends on their length,
so report n, frame count, frame rate and split with every value.

torchmetrics' FrechetInceptionDistance gives the same values at the same speed: the relative difference was 5e-15 for
1000 samples of 400 features, 4e-8 for 500 of 2048, and 2e-3 for a mean of 1e6 standard deviations, where its sums
cancel. It isn't used because it holds both sets in one object, while here the statistics of one set are compared with
several others, and because it rejects a single sample.

Precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et al. 2020,
arXiv:2002.09797) compare manifolds: the manifold of a set is the union of balls around its samples, each of which
reaches to the k-th nearest other sample of the set.

Legend: N samples (real ones where there are two sets), M generated samples, D features.
"""

import torch
from torch import Tensor

NEIGHBORS = 3  # k of the paper
ROWS = 1024  # rows of a distance matrix that are computed at once
SHARES = ("precision", "recall", "coverage")  # those that are proportions; a density may exceed 1


class GaussianStatistics:
    """Streaming mean and covariance in float64, by the pairwise update of Chan et al. 1979 (no cancellation).

    They are accumulated on the device of the first features; those of MPS, which has no float64, on the CPU.

    Args:
        dim: number of features.
    """

    def __init__(self, dim: int):
        self.n = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)  # sum of (x - mean)(x - mean)^T

    def update(self, features_ND: Tensor) -> None:
        """Add N samples, float [N,D].

        Raises:
            ValueError: a wrong shape, or NaN or infinite features.
        """
        if features_ND.ndim != 2 or features_ND.shape[1] != len(self.mean):
            raise ValueError(f"want features [N,{len(self.mean)}], got {[*features_ND.shape]}")
        if self.n == 0:
            device = torch.device("cpu") if features_ND.device.type == "mps" else features_ND.device
            self.mean, self.scatter = self.mean.to(device), self.scatter.to(device)
        x_ND = features_ND.detach().to(self.mean.device).double()
        if not x_ND.isfinite().all():
            raise ValueError("features are not finite")
        n = len(x_ND)
        if n == 0:
            return
        mean = x_ND.mean(0)
        centered_ND = x_ND - mean
        shift = mean - self.mean
        # Not in place: the tensors of one inference mode can't be changed outside of it.
        scatter = centered_ND.T @ centered_ND + torch.outer(shift, shift) * (self.n * n / (self.n + n))
        self.scatter, self.mean = self.scatter + scatter, self.mean + shift * (n / (self.n + n))
        self.n += n

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, float64 [D,D]; zeros for fewer than two samples."""
        return self.scatter / max(self.n - 1, 1)


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """Compute the squared 2-Wasserstein distance of two Gaussians, |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    The trace of the root is computed from a symmetric matrix, as the sum of the roots of the eigenvalues of
    S_a^(1/2) S_b S_a^(1/2). They are real even if there are fewer samples than features. The roots are
    computed on the CPU, wherever the statistics are.

    Raises:
        ValueError: an empty set or sets of different dimension.
    """
    if not (a.n and b.n) or a.mean.shape != b.mean.shape:
        raise ValueError(
            f"want two non-empty sets of one dimension, got {a.n} samples of {len(a.mean)} and {b.n} of {len(b.mean)}"
        )
    covariance_a, covariance_b = a.covariance.cpu(), b.covariance.cpu()
    values, vectors = torch.linalg.eigh(covariance_a)
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    trace_root = torch.linalg.eigvalsh(root_a @ covariance_b @ root_a).clamp(min=0).sqrt().sum()
    traces = covariance_a.trace() + covariance_b.trace()
    return ((a.mean.cpu() - b.mean.cpu()).square().sum() + traces - 2 * trace_root).item()


def manifold_metrics(real_ND: Tensor, fake_MD: Tensor, k: int = NEIGHBORS) -> dict[str, float]:
    """Compare two sets of features by their manifolds.

    All four depend on the numbers of samples and on k, and are compared only at the same ones. For two sets of one
    distribution, density is about 1, the others lie somewhat below 1; they fall with the dimension of the features.

    Args:
        real_ND, fake_MD: features, float, finite, more than k of each.
        k: which neighbor's distance is the radius of a ball.

    Returns:
        precision: share of generated samples within the manifold of the real ones (fidelity). recall: share of real
        samples within the manifold of the generated ones (coverage). density: average number of real balls that a
        generated sample is in, divided by k; unlike precision it hardly counts the balls of outliers. coverage: share
        of real samples with a generated one in their ball; unlike recall it does not depend on generated outliers.

    Raises:
        ValueError: too few samples, or different dimensions.
    """
    if min(len(real_ND), len(fake_MD)) <= k or real_ND.shape[1:] != fake_MD.shape[1:]:
        raise ValueError(f"want more than {k} samples of one dimension, got {[*real_ND.shape]} and {[*fake_MD.shape]}")
    real, fake = real_ND.double(), fake_MD.double()
    real_radius_N, fake_radius_M = _radii(real, k), _radii(fake, k)
    recalled, covered, balls_M = 0, 0, torch.zeros(len(fake), device=fake.device)
    for rows, radius in zip(real.split(ROWS), real_radius_N.split(ROWS), strict=True):
        distances = _distances(rows, fake)
        inside = distances <= radius[:, None]
        balls_M += inside.sum(0)
        covered += int(inside.any(1).sum())
        recalled += int((distances <= fake_radius_M).any(1).sum())
    return {
        "precision": (balls_M > 0).double().mean().item(),
        "recall": recalled / len(real),
        "density": (balls_M.mean() / k).item(),
        "coverage": covered / len(real),
    }


def _radii(x_ND: Tensor, k: int) -> Tensor:
    """Return the distance of each sample to its k-th nearest other sample, [N]."""
    # The nearest is the sample itself, at a distance of 0.
    return torch.cat([_distances(rows, x_ND).kthvalue(k + 1, dim=1).values for rows in x_ND.split(ROWS)])


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Matrix products are inexact: equal samples, as of a collapsed generator, would lie outside of each other's balls.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
