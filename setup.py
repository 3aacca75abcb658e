"""Builds sb3-diffbc; all of its metadata is here, its version in `sb3_diffbc/version.txt`."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

INSTALL_REQUIRES = [
    "imitation~=1.0.1",  # brings stable-baselines3 2.2.x and gymnasium 0.29
    "stable-baselines3>=2.2.1,<3",
    "gymnasium[mujoco]>=0.29.1,<2",  # its MuJoCo environments import imageio
    "mujoco>=2.3.7,<5",
    "torch>=2.6",  # older ones unpickle by default
    "numpy>=1.24",
    "scipy>=1.10",
    "pydantic>=2.7",
    "pyarrow>=14.0.1",  # older ones unpickle extension types
    "safetensors>=0.4",
    "matplotlib>=3.7",
    "tqdm",
    "tensorboard",
    "pyyaml>=6",
    "tyro>=0.9",
]

HDF5 = ["h5py>=3.8"]
ROBOTICS = [
    "gymnasium-robotics==1.2.3",  # 1.3 needs Gymnasium 1.0
    "mujoco<3.2",  # newer ones refuse its models
]
BENCHMARKS = [
    *ROBOTICS,
    "filelock>=3.12",
    "joblib",
    "pandas<3",  # rliable 1.2 fails with newer ones
    "pillow>=10.3",
    "rich",
    "rliable~=1.2.0",
    "tabulate",
]
RAY = ["ray>=2.52"]
ONNX = ["onnx>=1.16"]
VIDEO = ["imageio[ffmpeg]>=2.28"]
TEST = [
    *HDF5,
    *BENCHMARKS,
    *RAY,
    *ONNX,
    *VIDEO,
    "onnxruntime>=1.18",
    "hypothesis",
    "pytest>=8",
    "pytest-cov",
    "pytest-xdist",
    "sb3-contrib>=2.2.1,<3",
    "sybil>=9",
]
DOCS = [
    "mkdocs-material>=9.6",
    "mkdocstrings[python]>=1",
    "pymdown-extensions<12",  # newer ones break the mkdocstrings that Python 3.10 gets
    "ruff",  # formats the signatures
]
EXTRAS_REQUIRE = {
    "hdf5": HDF5,
    "robotics": ROBOTICS,
    "benchmarks": BENCHMARKS,
    "ray": RAY,
    "onnx": ONNX,
    "video": VIDEO,
    "test": TEST,
    "docs": DOCS,
    "dev": [*TEST, *DOCS, "build", "mypy", "ruff"],
}

setup(
    name="sb3-diffbc",
    version=(HERE / "sb3_diffbc" / "version.txt").read_text(encoding="utf-8").strip(),
    description="Diffusion model-augmented behavioral cloning for Stable-Baselines3 and imitation",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="sb3-diffbc contributors",
    project_urls={"Paper": "https://arxiv.org/abs/2302.13335"},
    license_expression="MIT",
    license_files=["LICENSE"],
    keywords=[
        "behavioral cloning",
        "diffusion models",
        "imitation learning",
        "stable-baselines3",
        "gymnasium",
        "pytorch",
    ],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["sb3_diffbc", "sb3_diffbc.*"]),
    package_data={
        "sb3_diffbc": ["version.txt", "py.typed"],
        "sb3_diffbc.demonstrations": ["bundled/*.npz", "bundled/*.json"],
        "sb3_diffbc.experts": ["*.safetensors"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={
        "console_scripts": ["sb3-diffbc = sb3_diffbc.cli.__main__:main"],
        "gymnasium.envs": ["__root__ = sb3_diffbc.envs:register_envs"],
    },
)
