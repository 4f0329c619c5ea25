"""torch modules as ONNX graphs: inference and gradients, verified against eager torch.

``export``, ``verify`` and ``decompositions`` need torch; ``model`` and ``same`` only onnx.
"""
