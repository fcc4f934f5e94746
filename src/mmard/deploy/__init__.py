"""Networks that leave PyTorch, and such that never were in it.

- reading.py: an ONNX file as a network that can be asked, and not differentiated
- export.py: a network as an ONNX file, checked against the network on real images
"""
