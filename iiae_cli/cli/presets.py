"""`iiae presets`: lists what `train` can start from."""

from __future__ import annotations

from functools import partial

from iiae_cli.cli import options as shared
from iiae_cli.cli.options import finish
from iiae_cli.common import console
from iiae_cli.common.environment import preset_folder, preset_names


def command(as_json: shared.Json = False) -> None:
    """List what `iiae train` can start from: name, data set, rough time, purpose.

    `iiae prepare` writes the data set; embedded sets are prepared when needed. Times are for two
    CPU cores, and estimates for an H200 if a GPU is needed.

    \b
    Examples:
      iiae presets
      iiae presets | cut -f1
      iiae presets --json | jq -r '.presets[] | select(.data == "pairs").name'
    """
    from iiae_cli.config.presets import preset_layers, read_yaml

    presets = []
    for name in preset_names():
        values = {
            key: value for layer in preset_layers(name) for key, value in layer.values.items()
        }
        own = read_yaml(preset_folder() / f"{name}.yaml")
        about = {"data": values["data.set"], "time": own.get("time", "")}
        presets.append({"name": name, **about, "description": values["description"]})
    rows = [tuple(preset.values()) for preset in presets]
    show = partial(console.print_table, ["preset", "data", "time", "what it is for"], rows)
    finish({"schema": "iiae.presets/1", "presets": presets}, show, as_json)
