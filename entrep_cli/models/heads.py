"""Classification heads on pooled features."""

from __future__ import annotations

import warnings
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from entrep_cli.recipes.recipe import Section

Positive = Annotated[float, Field(gt=0)]


class HeadSettings(Section):
    """The head of a recipe.

    `mlp` is the Foregut paper's (section 4.3.3): LayerNorm, dropout, then fully connected layers with
    GELU to 256 and 128 dimensions and to the classes. `linear` is one layer on the normalised features,
    learned by the training loop. `logistic` is the same layer as a logistic regression, solved and not
    learned by steps, on features that are standardised as well (the paper's section 5.1.1 says that the
    binary experts are such heads, 4.3.3 that they are MLPs; the standardisation is ours).

    Attributes:
        kind: `mlp`, fully connected layers; `linear`, one layer; `logistic`, logistic regression on standardised features.
        hidden: widths of the hidden layers of `mlp`.
        dropout: dropout probability before the hidden layers of `mlp`.
        c: inverse regularisation strengths of `logistic`; the best on validation is used (ours).
    """

    kind: Literal["mlp", "linear", "logistic"] = "mlp"
    hidden: tuple[PositiveInt, ...] = (256, 128)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    c: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


class Head(nn.Module):
    """(N, D) pooled features to (N, C) logits, through the (N, E) features of the last hidden layer."""

    def __init__(self, dim: int, n_classes: int, settings: HeadSettings) -> None:
        super().__init__()
        hidden = settings.hidden if settings.kind == "mlp" else ()
        layers: list[nn.Module] = [nn.LayerNorm(dim)]
        if hidden:
            layers.append(nn.Dropout(settings.dropout))
        for width_in, width_out in zip((dim, *hidden), hidden):
            layers += [nn.Linear(width_in, width_out), nn.GELU()]
        self.body = nn.Sequential(*layers)
        self.output = nn.Linear((dim, *hidden)[-1], n_classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.output(self.body(features))

    @torch.no_grad()
    def standardise(self, features: torch.Tensor) -> None:
        """Let `body` give every dimension mean 0 and deviation 1 over (N, D) features; only where it is one LayerNorm.

        The LayerNorm's weight and bias take the standardisation, so that the model keeps its form.
        """
        norm = self.body[-1]
        plain = nn.functional.layer_norm(features, norm.normalized_shape, eps=norm.eps).double()
        deviation, mean = torch.std_mean(plain, dim=0, correction=0)
        deviation = torch.where(deviation > 1e-6, deviation, 1.0)  # a constant dimension says nothing, and must not become noise
        norm.weight.copy_(1 / deviation)
        norm.bias.copy_(-mean / deviation)

    @torch.no_grad()
    def solve(self, hidden: torch.Tensor, targets: torch.Tensor, c: float, weights: torch.Tensor | None = None) -> bool:
        """Make `output` the logistic regression of (N,) targets on the (N, E) features of `body` with (N,) weights.

        The multinomial one for several classes; for two, logits -z/2 and z/2 of its z. A class without any
        target is never predicted. scikit-learn's L-BFGS with L2 regularisation, its `C` being `c`; on the CPU.

        Returns:
            whether it converged.

        Raises:
            ValueError: fewer than two classes among the targets.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        regression = LogisticRegression(C=c, max_iter=1000)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            regression.fit(hidden.double().numpy(), targets.numpy(), None if weights is None else weights.double().numpy())
        coefficients, intercepts = (torch.from_numpy(a) for a in (regression.coef_, regression.intercept_))
        if len(regression.classes_) == 2:
            coefficients, intercepts = (torch.cat([-a, a]) / 2 for a in (coefficients, intercepts))
        self.output.weight.zero_()
        self.output.bias.fill_(-1e4)
        classes = torch.from_numpy(regression.classes_)
        self.output.weight[classes] = coefficients.to(self.output.weight)
        self.output.bias[classes] = intercepts.to(self.output.bias)
        return not any(issubclass(w.category, ConvergenceWarning) for w in caught)
