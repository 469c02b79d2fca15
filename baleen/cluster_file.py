"""Cluster files: from YAML to `baleen.cluster_config.ClusterConfig`. Every key that is not known is refused."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from baleen.cluster_config import ClusterConfig
from baleen.config_file import from_dict
from baleen.errors import ConfigError


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader keeps the last of two equal keys without a word; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        repeated = next((key for key in keys if keys.count(key) > 1), None)
        if repeated is not None:
            raise ConfigError(f"line {node.start_mark.line + 1}: key {repeated!r} stands twice in one object")
        return super().construct_mapping(node, deep)


def load_cluster_config(path: Path) -> ClusterConfig:
    """Read a cluster file; paths in it are relative to it. Raises ConfigError that names the file, key and value."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        config = from_dict(ClusterConfig, {} if raw is None else raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return _at(path.absolute().parent, config)


def _at(folder: Path, config: ClusterConfig) -> ClusterConfig:
    """A relative path means the same from wherever the command is run."""
    model = config.model and replace(config.model, path=str(folder / config.model.path))
    files = {name: getattr(config.redis, name) for name in ("password_file", "ca_file", "cert_file", "key_file")}
    found = {name: str(folder / value) for name, value in files.items() if value}
    tls = config.tls
    if tls.enabled:
        tls = replace(tls, **{name: str(folder / getattr(tls, name)) for name in ("ca_file", "cert_file", "key_file")})
    gateway = config.gateway
    if gateway.keys.database:
        gateway = replace(gateway, keys=replace(gateway.keys, database=str(folder / gateway.keys.database)))
    return replace(config, model=model, redis=replace(config.redis, **found), tls=tls, gateway=gateway)
