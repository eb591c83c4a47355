"""Models made on the fly that between them use every corner of the ONNX schema: `all_fixtures()` yields them.

Each fixture is (name, ModelProto, feeds): feeds are inputs for onnxruntime, or None where it does not take the model (an
element type, an operator or a field that it does not know); such a model is only compared field by field.
"""
import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
OPSET = 21
X = np.array([-1.5, 0.25, 3.0], np.float32)

# Bits that a conversion to a number and back would change: signalling NaNs with a payload, -0.0, subnormals.
AWKWARD = {
    TensorProto.FLOAT: np.array([0x7FA00001, 0xFFC12345, 0x80000000, 1], "<u4").tobytes(),
    TensorProto.DOUBLE: np.array([0x7FF4000000000001, 1 << 63, 1, 0xFFF8000000000123], "<u8").tobytes(),
    TensorProto.FLOAT16: np.array([0x7D01, 0x8000, 1, 0xFE55], "<u2").tobytes(),
    TensorProto.BFLOAT16: np.array([0x7FA1, 0x8000, 1, 0xFFC5], "<u2").tobytes(),
}
BITS = {
    "FLOAT": 32, "UINT8": 8, "INT8": 8, "UINT16": 16, "INT16": 16, "INT32": 32, "INT64": 64, "BOOL": 8, "FLOAT16": 16,
    "DOUBLE": 64, "UINT32": 32, "UINT64": 64, "COMPLEX64": 64, "COMPLEX128": 128, "BFLOAT16": 16, "FLOAT8E4M3FN": 8,
    "FLOAT8E4M3FNUZ": 8, "FLOAT8E5M2": 8, "FLOAT8E5M2FNUZ": 8, "UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "FLOAT8E8M0": 8,
    "UINT2": 2, "INT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6,
}  # fmt: skip


def value(name, dtype=FLOAT, shape=(3,)):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes, inputs, outputs, name="g", opset=OPSET, domains=(), ir_version=None, functions=(), **graph):
    """A ModelProto; further keywords go to make_graph."""
    imports = [helper.make_opsetid("", opset)] + [helper.make_opsetid(d, 1) for d in domains]
    body = helper.make_graph(nodes, name, inputs, outputs, **graph)
    return helper.make_model(
        body, opset_imports=imports, functions=functions, ir_version=ir_version or 10, producer_name="fixtures"
    )


def identity(**graph):
    """y = x, and whatever else the keywords put in the graph."""
    return model([helper.make_node("Identity", ["x"], ["y"])], [value("x")], [value("y")], **graph)


def metadata(message, **entries):
    for k, v in entries.items():
        message.metadata_props.add(key=k, value=v)


# --- tensors ---------------------------------------------------------------------------------------------------------


def raw_tensor(name, dtype, bits):
    """Five elements (an odd number, so that packed types end in a part-used byte) as raw_data; whole bytes of 6-bit types."""
    data = AWKWARD.get(dtype)
    count = len(data) * 8 // bits if data else 4 if bits == 6 else 5
    if data is None:
        size = -(-count * bits // 8)
        data = bytes((17 * i + 3) % 2 if dtype == TensorProto.BOOL else (89 * i + 113) % 256 for i in range(size))
    return TensorProto(name=name, data_type=dtype, dims=[count], raw_data=data)


def typed_tensor(name, dtype):
    """The same element type in the typed field that onnx.proto assigns to it."""
    tensor = TensorProto(name=name, data_type=dtype)
    field = helper.tensor_dtype_to_field(dtype)
    values = {
        "float_data": [1.0, -0.0, float("inf"), 1e-45],
        "double_data": [1.0, -0.0, float("-inf"), 5e-324],
        "int64_data": [-(2**63), 2**63 - 1, -1, 0],
        "uint64_data": [0, 1, 2**32 - 1, 7],
        "int32_data": [0, 1, 1, 0],
        "string_data": [b"plain", b"", "π".encode(), b"\xff\x00 not UTF-8"],
    }[field]
    if dtype == TensorProto.INT32:
        values = [-(2**31), 2**31 - 1, -1, 0]
    if dtype == TensorProto.UINT64:
        values = [2**64 - 1, 1, 0, 7]
    getattr(tensor, field).extend(values)
    elements = {"COMPLEX64": 0.5, "COMPLEX128": 0.5, "UINT4": 2, "INT4": 2, "FLOAT4E2M1": 2, "UINT2": 4, "INT2": 4}
    tensor.dims.append(int(len(values) * elements.get(TensorProto.DataType.Name(dtype), 1)))
    return tensor


def dtype_fixtures():
    for name, dtype in TensorProto.DataType.items():
        if name == "UNDEFINED":
            continue
        if name != "STRING":
            yield f"dtype-{name}-raw", identity(initializer=[raw_tensor("w", dtype, BITS[name])]), {"x": X}
        yield f"dtype-{name}-typed", identity(initializer=[typed_tensor("w", dtype)]), {"x": X}


def used_tensors():
    """Tensors whose values reach an output, in odd shapes: scalar, empty, typed beside raw, big-endian nowhere."""
    tensors = [
        TensorProto(name="scalar", data_type=FLOAT, float_data=[2.5]),
        TensorProto(name="empty", data_type=FLOAT, dims=[0, 3]),
        TensorProto(name="empty_raw", data_type=FLOAT, dims=[0, 3], raw_data=b""),
        helper.make_tensor("typed", FLOAT, [3], X),
        numpy_helper.from_array(X, "raw"),
        helper.make_tensor("half", TensorProto.FLOAT16, [3], [1.0, -2.0, 65504.0]),
    ]
    nodes = [
        helper.make_node("Mul", ["x", "scalar"], ["a"]),
        helper.make_node("Add", ["a", "typed"], ["b"]),
        helper.make_node("Sub", ["b", "raw"], ["y"]),
        helper.make_node("Concat", ["empty", "empty_raw"], ["z"], axis=0),
        helper.make_node("Cast", ["half"], ["h"], to=FLOAT),
    ]
    outputs = [value("y"), value("z", shape=(0, 3)), value("h")]
    return model(nodes, [value("x")], outputs, initializer=tensors)


def sparse(name):
    return helper.make_sparse_tensor(
        helper.make_tensor(name, FLOAT, [2], [4.0, -8.0]), helper.make_tensor("", TensorProto.INT64, [2], [0, 2]), [3]
    )


def sparse_initialiser():
    return model(
        [helper.make_node("Add", ["x", "s"], ["y"])], [value("x")], [value("y")], sparse_initializer=[sparse("s")]
    )


# --- structure -------------------------------------------------------------------------------------------------------


def constant_forms():
    forms = {
        "value": helper.make_tensor("t", FLOAT, [3], X),
        "value_float": 2.0,
        "value_floats": [1.0, 2.0, 3.0],
        "value_int": 3,
        "value_ints": [1, 2, 3],
    }
    nodes = [helper.make_node("Constant", [], [k], **{k: v}) for k, v in forms.items()]
    nodes += [helper.make_node("Cast", [k], [k + "_f"], to=FLOAT) for k in forms]
    nodes.append(helper.make_node("Sum", ["x", *(k + "_f" for k in forms)], ["y"]))
    return model(nodes, [value("x")], [value("y")])


def optional_ports():
    """Absent inputs in the middle and at the end, absent outputs, one value twice in one node."""
    nodes = [
        helper.make_node("Clip", ["x", "", "hi"], ["a"], name="no minimum"),
        helper.make_node("Clip", ["a", "", ""], ["b"], name="both absent, written out"),
        helper.make_node("Mul", ["b", "b"], ["c"]),
        helper.make_node("Unique", ["c"], ["u", "", "inverse"], name="no indices"),
        helper.make_node("Dropout", ["c"], ["y", ""]),
    ]
    outputs = [value("y"), value("inverse", TensorProto.INT64), value("u", shape=["n"])]
    return model(nodes, [value("x")], outputs, initializer=[numpy_helper.from_array(np.float32(1), "hi")])


def odd_wiring():
    """Dead nodes, unused inputs and initialisers, missing names, an order of nodes that is one of several."""
    nodes = [
        helper.make_node("Neg", ["x"], ["n"], name="named"),
        helper.make_node("Abs", ["x"], ["dead"], name="/dead/Abs"),
        helper.make_node("Exp", ["x"], ["e"]),
        helper.make_node("Identity", ["n"], ["unused"], name=""),
        helper.make_node("Add", ["e", "n"], ["y"]),
        helper.make_node("Sub", ["e", "n"], ["z"]),
    ]
    inputs = [value("unused in"), value("x"), value("default")]
    tensors = [numpy_helper.from_array(X, "default"), numpy_helper.from_array(X[::-1].copy(), "nobody")]
    return model(nodes, inputs, [value("z"), value("n"), value("y")], initializer=tensors)


def repeated_names():
    """Two nodes of one name: valid ONNX, refused by onnxruntime."""
    nodes = [helper.make_node("Neg", ["x"], ["n"], name="same"), helper.make_node("Abs", ["n"], ["y"], name="same")]
    return model(nodes, [value("x")], [value("y")])


def direct_outputs():
    """An output that is an initialiser, beside one that is computed."""
    return model(
        [helper.make_node("Relu", ["x"], ["y"])],
        [value("x")],
        [value("w"), value("y")],
        initializer=[numpy_helper.from_array(X, "w")],
    )


def symbolic_shapes():
    shape = ["batch", None, 3]
    m = model(
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])],
        [value("x", shape=shape)],
        [value("y", shape=shape)],
        value_info=[value("a", shape=shape)],
    )
    m.graph.input[0].type.denotation = "TENSOR"
    m.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    return m


def unranked():
    """A type without a shape is not a type of rank 0."""
    types = {"scalar": helper.make_tensor_type_proto(FLOAT, []), "any": helper.make_tensor_type_proto(FLOAT, None)}
    infos = [helper.make_value_info(k, t) for k, t in types.items()]
    return identity(value_info=[*infos, onnx.ValueInfoProto(name="bare")])


def every_type():
    """value_info of each kind of type."""
    tensor = helper.make_tensor_type_proto(FLOAT, ["n", 2])
    kinds = {
        "sequence": helper.make_sequence_type_proto(tensor),
        "optional": helper.make_optional_type_proto(helper.make_sequence_type_proto(tensor)),
        "map": helper.make_map_type_proto(TensorProto.STRING, tensor),
        "sparse": helper.make_sparse_tensor_type_proto(FLOAT, [3]),
    }
    return identity(value_info=[helper.make_value_info(k, t) for k, t in kinds.items()])


def every_attribute():
    """Each attribute type, empty lists, bytes that are no text, on an operator that nobody knows."""
    body = helper.make_graph([helper.make_node("Relu", ["p"], ["q"])], "body", [value("p")], [value("q")])
    tensor, kind = helper.make_tensor("t", FLOAT, [1], [1.0]), helper.make_tensor_type_proto(FLOAT, [1])
    node = helper.make_node("Anything", ["x"], ["y"], domain="example.org", name="n")
    A = AttributeProto
    for name, attribute_type, content in [
        ("f", A.FLOAT, dict(f=-0.0)),
        ("i", A.INT, dict(i=-(2**63))),
        ("zero", A.INT, dict(i=0)),
        ("s", A.STRING, dict(s=b"\xff\x00\xfe")),
        ("empty string", A.STRING, dict(s=b"")),
        ("t", A.TENSOR, dict(t=tensor)),
        ("g", A.GRAPH, dict(g=body)),
        ("sparse", A.SPARSE_TENSOR, dict(sparse_tensor=sparse("v"))),
        ("tp", A.TYPE_PROTO, dict(tp=kind)),
        ("floats", A.FLOATS, dict(floats=[1.0, float("nan")])),
        ("ints", A.INTS, dict(ints=[1, -1])),
        ("strings", A.STRINGS, dict(strings=[b"a", b"", b"\xff"])),
        ("tensors", A.TENSORS, dict(tensors=[tensor, tensor])),
        ("graphs", A.GRAPHS, dict(graphs=[body, body])),
        ("sparses", A.SPARSE_TENSORS, dict(sparse_tensors=[sparse("v")])),
        ("types", A.TYPE_PROTOS, dict(type_protos=[kind])),
        ("no ints", A.INTS, {}),
        ("no floats", A.FLOATS, {}),
        ("no strings", A.STRINGS, {}),
    ]:
        node.attribute.append(AttributeProto(name=name, type=attribute_type, doc_string=f"about {name}", **content))
    return model([node], [value("x")], [value("y")], domains=["example.org"])


def described():
    """Doc strings, metadata_props and the fields about a model's origin, wherever the schema has them."""
    relu = helper.make_node("Relu", ["x"], ["y"], name="r", doc_string="a node\nof two lines")
    weights = numpy_helper.from_array(X, "w")
    weights.doc_string = "a tensor"
    metadata(weights, of="tensor")
    m = model([relu], [value("x")], [value("y")], initializer=[weights], doc_string="a graph")
    m.graph.input[0].doc_string = "an input"
    metadata(m.graph.input[0], of="value")
    metadata(m.graph.node[0], of="node", namespace="/a/b")
    metadata(m.graph, of="graph")
    metadata(m, b="2", a="1", **{"non-ascii": "ü", "empty": ""})
    m.producer_name, m.producer_version, m.domain = "me", "1.2.3", "org.example"
    m.model_version, m.doc_string = 42, "a model with a doc string: π"
    return m


def explicit_defaults():
    """Scalar fields that are present with their default value, as some writers leave them."""
    m = identity()
    m.doc_string = m.domain = m.producer_version = ""
    m.model_version = 0
    m.graph.doc_string = m.graph.node[0].doc_string = m.graph.node[0].domain = m.graph.node[0].name = ""
    return m


def quantisation_annotation():
    note = onnx.TensorAnnotation(tensor_name="x")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w_scale")
    note.quant_parameter_tensor_names.add(key="ZERO_POINT_TENSOR", value="w_zero")
    tensors = [numpy_helper.from_array(np.float32(0.5), "w_scale"), numpy_helper.from_array(np.int8(3), "w_zero")]
    m = identity(initializer=tensors)
    m.graph.quantization_annotation.append(note)
    return m


def devices():
    """IR 11: device configurations."""
    m = identity(ir_version=11)
    m.configuration.add(name="two", num_devices=2, device=["CPU:0", "CPU:1"])
    m.graph.node[0].device_configurations.add(configuration_id="two", pipeline_stage=1)
    return m


def training():
    """training_info: deprecated, still in the schema."""
    m = identity()
    info = m.training_info.add()
    info.algorithm.CopyFrom(helper.make_graph([helper.make_node("Relu", ["p"], ["q"])], "step", [], [value("q")]))
    info.initialization_binding.add(key="p", value="q")
    return m


def old():
    """IR 3, opset 9, an initialiser listed among the inputs, as before 2019."""
    w = numpy_helper.from_array(X, "w")
    nodes = [helper.make_node("Add", ["x", "w"], ["a"]), helper.make_node("Dropout", ["a"], ["y"], ratio=0.5)]
    return model(nodes, [value("x"), value("w")], [value("y")], opset=9, ir_version=3, initializer=[w])


def several_domains():
    """ai.onnx.ml beside the default domain; an opset that nothing uses."""
    nodes = [
        helper.make_node("Scaler", ["x"], ["a"], domain="ai.onnx.ml", offset=[1.0], scale=[2.0]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    return model(nodes, [value("x")], [value("y")], domains=["ai.onnx.ml", "nobody.uses.this"])


# --- subgraphs and functions -----------------------------------------------------------------------------------------


def branches():
    """An If inside an If, both reading values of the graphs around them; an initialiser inside a branch."""

    def graph(name, nodes, output, tensors=()):
        return helper.make_graph(nodes, name, [], [value(output)], initializer=tensors)

    inner_then = graph("inner then", [helper.make_node("Add", ["outer", "x"], ["it"])], "it")
    inner_else = graph("inner else", [helper.make_node("Sub", ["outer", "x"], ["ie"])], "ie")
    then = graph(
        "then",
        [
            helper.make_node("Mul", ["x", "local"], ["outer"], doc_string="in a branch"),
            helper.make_node("If", ["positive"], ["t"], then_branch=inner_then, else_branch=inner_else),
        ],
        "t",
        [numpy_helper.from_array(X, "local")],
    )
    other = graph("else", [helper.make_node("Neg", ["x"], ["e"])], "e")
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=then, else_branch=other),
    ]
    return model(nodes, [value("x")], [value("y")], initializer=[numpy_helper.from_array(np.float32(0), "zero")])


def loops():
    """A Loop with a carried and a stacked value, and a Scan."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["cond_in"], ["cond_out"]),
            helper.make_node("Add", ["carried", "x"], ["next"]),
            helper.make_node("Identity", ["next"], ["stacked"]),
        ],
        "loop",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond_in", TensorProto.BOOL, []),
            value("carried"),
        ],
        [helper.make_tensor_value_info("cond_out", TensorProto.BOOL, []), value("next"), value("stacked")],
    )
    scan = helper.make_graph(
        [helper.make_node("Add", ["state", "row"], ["sum"]), helper.make_node("Identity", ["sum"], ["each"])],
        "scan",
        [value("state"), value("row")],
        [value("sum"), value("each")],
    )
    nodes = [
        helper.make_node("Loop", ["trips", "", "x"], ["last", "all"], body=body),
        helper.make_node("Scan", ["last", "all"], ["y", "z"], body=scan, num_scan_inputs=1),
    ]
    trips = numpy_helper.from_array(np.int64(4), "trips")
    return model(nodes, [value("x")], [value("y"), value("z", shape=(4, 3))], initializer=[trips])


def functions():
    """Model-local functions: one calls the other, attributes by reference, with a default, overloads, metadata."""
    ops = [helper.make_opsetid("", OPSET), helper.make_opsetid("local", 1)]
    leaky = helper.make_function(
        "local",
        "Leaky",
        ["p"],
        ["q"],
        [helper.make_node("LeakyRelu", ["p"], ["q"])],
        ops,
        attributes=["slope"],
        doc_string="a function",
    )
    reference = leaky.node[0].attribute.add(name="alpha", type=AttributeProto.FLOAT)
    reference.ref_attr_name = "slope"
    twice = helper.make_function(
        "local",
        "Twice",
        ["p"],
        ["q"],
        [
            helper.make_node("Leaky", ["p"], ["m"], domain="local", slope=0.5, name="first"),
            helper.make_node("Elu", ["m"], ["q"], name="second"),
        ],
        ops,
        attribute_protos=[helper.make_attribute("alpha", 0.25)],
    )
    reference = twice.node[1].attribute.add(name="alpha", type=AttributeProto.FLOAT)
    reference.ref_attr_name = "alpha"
    twice.value_info.append(value("m"))
    metadata(twice, of="function")
    nodes = [
        helper.make_node("Twice", ["x"], ["a"], domain="local"),
        helper.make_node("Leaky", ["a"], ["y"], domain="local", slope=0.125),
    ]
    return model(nodes, [value("x")], [value("y")], domains=["local"], functions=[leaky, twice])


def overloads():
    """Two functions of one name, told apart by `overload` (IR 10)."""
    ops = [helper.make_opsetid("", OPSET)]
    made = []
    for overload, op in (("neg", "Neg"), ("abs", "Abs")):
        f = helper.make_function("local", "F", ["p"], ["q"], [helper.make_node(op, ["p"], ["q"])], ops)
        f.overload = overload
        made.append(f)
    nodes = [
        helper.make_node("F", ["x"], ["a"], domain="local", overload="neg"),
        helper.make_node("F", ["a"], ["y"], domain="local", overload="abs"),
    ]
    return model(nodes, [value("x")], [value("y")], domains=["local"], functions=made)


def all_fixtures():
    yield from dtype_fixtures()
    feeds = {"x": X}
    for make in (
        used_tensors, sparse_initialiser, constant_forms, optional_ports, direct_outputs, unranked, every_type, described,
        explicit_defaults, quantisation_annotation, devices, training, old, several_domains, branches, loops, functions,
        overloads,
    ):  # fmt: skip
        yield make.__name__, make(), feeds
    yield "symbolic_shapes", symbolic_shapes(), {"x": np.arange(12, dtype=np.float32).reshape(2, 2, 3)}
    yield "odd_wiring", odd_wiring(), {"x": X, "unused in": X}
    for make in (every_attribute, repeated_names):
        yield make.__name__, make(), None


def external_model(folder):
    """A model with its weights beside it in one file, at offsets, one tensor with a length and one without; its path."""
    weights = {"w": np.linspace(-1, 1, 5000, dtype=np.float32), "v": np.arange(5000, dtype=np.float32)}
    tensors, blob = [], b"\x00" * 4096
    for name, array in weights.items():
        tensor = TensorProto(name=name, data_type=FLOAT, dims=[5000], data_location=TensorProto.EXTERNAL)
        entries = {"location": "weights.bin", "offset": str(len(blob))}
        if name == "w":
            entries["length"] = str(array.nbytes)
        for key, text in entries.items():
            tensor.external_data.add(key=key, value=text)
        tensors.append(tensor)
        blob += array.tobytes()
        blob += b"\x00" * (-len(blob) % 4096 if name == "w" else 0)
    (folder / "weights.bin").write_bytes(blob)
    nodes = [helper.make_node("Add", ["x", "w"], ["a"]), helper.make_node("Mul", ["a", "v"], ["y"])]
    inputs, outputs = [value("x", shape=(5000,))], [value("y", shape=(5000,))]
    path = folder / "external.onnx"
    onnx.save(model(nodes, inputs, outputs, initializer=tensors), path)
    return path, {"x": np.linspace(0, 1, 5000, dtype=np.float32)}
