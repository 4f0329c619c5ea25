"""torch modules as ONNX graphs: inference, gradients and explanations, verified against eager torch.

``model`` and ``same`` need only onnx; everything else torch.
"""
