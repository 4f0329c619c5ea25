"""The protocol: all that device, service and workbench must agree on.

Pure values and functions: no sockets, clocks, threads or Flower.
"""
