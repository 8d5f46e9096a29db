"""Optax transforms applied to each layer of a stack separately."""

from __future__ import annotations

import optax

from mmjax.layers import restack_layers, unstack_layers


def per_layer(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Applies `inner` to unstacked layers, so that its norms and means cover one layer, not the whole stack.

    The state is stored stacked, so it has the structure and the shardings of the parameters.
    """
    inner = optax.with_extra_args_support(inner)

    def init(parameters):
        return restack_layers(inner.init(unstack_layers(parameters)), parameters)

    def update(updates, state, parameters=None, **extra_args):
        layers, layer_state = unstack_layers(updates), unstack_layers(state, updates)
        layers, layer_state = inner.update(layers, layer_state, unstack_layers(parameters), **extra_args)
        return restack_layers(layers, updates), restack_layers(layer_state, updates)

    return optax.GradientTransformationExtraArgs(init, update)
