"""baleen/v1 is what proto/baleen/v1 says, and the sources keep to the rules that let an interface grow."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "proto").rglob("*.proto"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Descriptors of our own files, with their comments."""
    target = tmp_path_factory.mktemp("descriptors") / "all"
    # in a process of its own: the compiler's library does not bear every other one in the same process
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'proto'}"]
    arguments = [f"--descriptor_set_out={target}", "--include_source_info", *map(str, SOURCES)]
    subprocess.run([*command, *arguments], timeout=60, check=True)
    return descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file


def elements(files):
    """(file, path, element) of every message, field, enum, value, service and method. No message here has another."""
    for file in files:
        for at, message in enumerate(file.message_type):
            if not message.options.map_entry:
                yield file, (4, at), message
                yield from ((file, (4, at, 2, number), field) for number, field in enumerate(message.field))
                yield from ((file, (4, at, 8, number), one) for number, one in enumerate(_oneofs(message)))
        for at, enum in enumerate(file.enum_type):
            yield file, (5, at), enum
            yield from ((file, (5, at, 2, number), value) for number, value in enumerate(enum.value))
        for at, service in enumerate(file.service):
            yield file, (6, at), service
            yield from ((file, (6, at, 2, number), method) for number, method in enumerate(service.method))


def _oneofs(message):
    """Those that were written as such, which come first; the others stand for `optional`."""
    optional = {field.oneof_index for field in message.field if field.proto3_optional}
    return [one for number, one in enumerate(message.oneof_decl) if number not in optional]


def test_buf_has_nothing_to_say_about_the_sources():
    buf = Path(sys.executable).parent / "buf"
    done = subprocess.run([buf, "lint"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_generated_code_is_current(tmp_path):
    subprocess.run([sys.executable, str(ROOT / "proto" / "generate.py"), str(tmp_path)], check=True, timeout=120)

    def contents(root):
        paths = [path for path in (root / "baleen" / "v1").rglob("*") if path.suffix in (".py", ".pyi")]
        return {path.name: path.read_text() for path in paths}

    fresh, committed = contents(tmp_path), contents(ROOT)
    assert len(fresh) > 5 and fresh.keys() == committed.keys(), "run `make proto`"
    assert [name for name in fresh if fresh[name] != committed[name]] == [], "run `make proto`"


def test_every_element_says_what_it_is(files):
    silent = []
    for file, path, element in elements(files):
        comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        if not comments.get(path, "").strip():
            silent.append(f"{file.name}: {element.name}")
    assert silent == []


def test_packages_stand_where_their_names_say(files):
    for file in files:
        assert file.package == ".".join(Path(file.name).parts[:-1]) and re.search(r"\.v[0-9]+$", file.package)
        assert file.syntax == "proto3"


def test_zero_means_that_an_enum_was_not_set(files):
    for file in files:
        for enum in file.enum_type:
            prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
            assert all(value.name.startswith(f"{prefix}_") for value in enum.value), enum.name
            assert enum.value[0].name == f"{prefix}_UNSPECIFIED" and enum.value[0].number == 0


def test_every_call_has_messages_of_its_own(files):
    used = []
    for file in files:
        for service in file.service:
            assert service.name.endswith("Service")
            for method in service.method:
                assert method.input_type == f".{file.package}.{method.name}Request"
                assert method.output_type == f".{file.package}.{method.name}Response"
                used += [method.input_type, method.output_type]
    assert len(set(used)) == len(used) > 10


def test_names_are_spelled_as_everywhere(files):
    for file, path, element in elements(files):
        shape = r"[a-z][a-z0-9]*(_[a-z0-9]+)*" if len(path) == 4 and path[0] == 4 else r"[A-Z][A-Za-z0-9]*"
        if path[0] == 5 and len(path) == 4:
            shape = r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*"
        assert re.fullmatch(shape, element.name), f"{file.name}: {element.name}"


def test_sampling_fields_can_be_absent(files):
    (sampling,) = [m for file in files for m in file.message_type if m.name == "SamplingParams"]
    plain = [f.name for f in sampling.field if f.label != f.LABEL_REPEATED and not f.proto3_optional]
    assert plain == []
