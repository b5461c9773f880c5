"""The package is described in pyproject.toml; here is what that cannot say: configs/ is installed too."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["entropy_rl*"]), "entropy_rl.configs"],
    package_dir={"entropy_rl.configs": "configs"},
    package_data={"entropy_rl": ["py.typed", "report/assets/*"], "entropy_rl.configs": ["*.json"]},
)
