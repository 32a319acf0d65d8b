"""ONNX models: load, find convolutions, put rewrites in their place, save. The only package that knows ONNX.

    files       load and save                          model      a model as it came
    sites       every convolution: Site or Refusal     analysis   who makes and takes what (graphsurgeon)
    splice      rewrites into the model                emit       a rewrite as nodes
    unpin, fold steps that need no rewrite             segments   a model in pieces between its sites
    probes      small models to time and to check      views      other outputs, other input sizes
    describe    a model in text                        fingerprint  a digest of what takes time
    nodes       its nodes by name                      inventory  layers with their shapes and costs
    interface   what two models take and give          reach      receptive fields
    tensors     single tensors in files
    constants   values of nodes on constants alone     scaling    factors and constants behind a convolution
    external    weights in files beside the model  soundness  what a node must have
    around      what a convolution takes in            channels   who reads and who makes each channel
    affine      scaled channels as one norm            mixing     layers that mix channels
    fusible     activations in one operator            dead       channels that make no difference
    facts       who makes and takes a tensor           identities  none where they only rename
    operators   each written in others                 expansions  those of a model
    resizes     in the layout of convolutions  pieces    outputs that a Concat joins

What is not rewritten comes out as it came, byte for byte.
"""

from rewriter.files import check_output
from rewriter.graph.affine import as_norms
from rewriter.graph.around import fold_around
from rewriter.graph.batchnorm import Norm, find_norms
from rewriter.graph.dead import dead_channels, remove_dead, removed_channels, sole_readers
from rewriter.graph.describe import describe
from rewriter.graph.emit import whole_of
from rewriter.graph.expansions import Expansion, expanded, expansion_probes, find_expansions
from rewriter.graph.external import SIZE_THRESHOLD, loadable, serialize, weight_bytes
from rewriter.graph.files import Source, Storage, load, save
from rewriter.graph.fingerprint import fingerprint
from rewriter.graph.fold import fold
from rewriter.graph.followers import Follower
from rewriter.graph.fusible import as_fusible
from rewriter.graph.identities import without_identities
from rewriter.graph.interface import common_interface
from rewriter.graph.inventory import Inventory, Layer, Window, inventory
from rewriter.graph.model import Model
from rewriter.graph.nodes import Node, computing, flow, named
from rewriter.graph.pieces import Piece, output_pieces
from rewriter.graph.probes import block_probe, probe, read_block, rewrite_model
from rewriter.graph.resizes import in_blocks, moved_resizes
from rewriter.graph.segments import Segment, segments
from rewriter.graph.sites import Site, find_sites
from rewriter.graph.splice import splice
from rewriter.graph.tape import Constants, Step, Tape, recorder, tape
from rewriter.graph.tensors import read_tensor
from rewriter.graph.unpin import unpin
from rewriter.graph.views import with_outputs, with_shapes

__all__ = [
    "SIZE_THRESHOLD",
    "Constants",
    "Expansion",
    "Follower",
    "Inventory",
    "Layer",
    "Model",
    "Node",
    "Norm",
    "Piece",
    "Segment",
    "Site",
    "Source",
    "Step",
    "Storage",
    "Tape",
    "Window",
    "as_fusible",
    "as_norms",
    "block_probe",
    "check_output",
    "common_interface",
    "computing",
    "dead_channels",
    "describe",
    "expanded",
    "expansion_probes",
    "find_expansions",
    "find_norms",
    "find_sites",
    "fingerprint",
    "flow",
    "fold",
    "fold_around",
    "in_blocks",
    "inventory",
    "load",
    "loadable",
    "moved_resizes",
    "named",
    "output_pieces",
    "probe",
    "read_block",
    "read_tensor",
    "recorder",
    "remove_dead",
    "removed_channels",
    "rewrite_model",
    "save",
    "segments",
    "serialize",
    "sole_readers",
    "splice",
    "tape",
    "unpin",
    "weight_bytes",
    "whole_of",
    "with_outputs",
    "with_shapes",
    "without_identities",
]
