"""Unpacks Debian packages, whose documentation is a source of prose."""

import pathlib
import subprocess
import sys


def unpack(package: str, work: pathlib.Path) -> pathlib.Path:
  """Downloads a package with apt-get and unpacks it under `work`; nothing is installed. Returns its root."""
  root = work / package
  if not root.exists():
    work.mkdir(parents=True, exist_ok=True)
    try:
      subprocess.run(["apt-get", "download", "-qq", package], cwd=work, check=True, capture_output=True)
      deb = next(work.glob(f"{package}_*.deb"))
      subprocess.run(["dpkg", "-x", str(deb), f"{root}.part"], check=True, capture_output=True)
    except (subprocess.CalledProcessError, OSError) as e:
      raise ValueError(f"apt-get found no package {package}; run apt-get update on Debian 12 first") from e
    pathlib.Path(f"{root}.part").rename(root)  # half an unpacked package never counts
    print(deb.name, file=sys.stderr)  # its version, for who wants to make the same data again
    deb.unlink()
  return root
