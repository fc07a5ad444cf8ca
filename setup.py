"""Metadata of the distribution `chime-ha`. Tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

PACKAGES = ["chimed", "agentd", "wire", "tools"]
README = Path(__file__).with_name("README.md")
CHECKS = [
    "block_devices", "business", "clock", "edac", "interfaces", "memory", "raid", "scripts", "smart", "storage",
]  # fmt: skip
AGENT = ["libvirt-python>=9", "psutil>=5.9"]

setup(
    name="chime-ha",
    version="0.1.0",
    description="Keeps KVM virtual machines running on a fleet of Linux nodes, each exactly once",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=[pattern for name in PACKAGES for pattern in (name, f"{name}.*")]),
    package_data={"wire": ["vectors/*.json"], "": ["py.typed"]},
    install_requires=[
        "pyzmq>=27",
        "msgpack>=1.2.1",
        "msgspec>=0.20",
        "sqlite-utils>=4",
        "docopt-ng>=0.9",
        "structlog>=24",
        "rich>=13",
    ],
    extras_require={
        "agent": AGENT,
        "dev": [
            *AGENT,
            "pytest>=8",
            "pexpect>=4.9",
            "coverage>=7.4",
            "hypothesis>=6",
            "ruff>=0.11",
            "mypy>=1.15",
            "import-linter>=2.1",
            "types-psutil",
        ],
    },
    entry_points={
        "console_scripts": [
            "chimed=chimed.main:main",
            "agentd=agentd.main:main",
            "chime-tool=tools.main:main",
            "chime-agent=agentd.local.main:main",
        ],
        "chime.checks": [f"{name.replace('_', '-')}=agentd.checks.{name}:checks" for name in CHECKS],
    },
)
