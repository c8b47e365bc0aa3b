"""conf/ stays at the top of a clone and ships inside the package, as accel/conf; all else is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

# Folders of weights and of YAML files are packages to setuptools; a clone's own settings (conf/local) stay at home.
code = find_namespace_packages(include=["accel", "accel.*"], exclude=["*.__pycache__"])
conf = find_namespace_packages("conf", exclude=["local", "local.*"])
setup(
    packages=[*code, "accel.conf", *(f"accel.conf.{group}" for group in conf)],
    package_dir={"accel.conf": "conf"},
    package_data={
        "": ["*.yaml", "*.json", "*.txt", "*.safetensors", "*.html", "*.css", "*.js"],
        "accel.conf": ["claims.csv"],
    },
)
