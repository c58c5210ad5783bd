"""Makes the recordings beside this file: digits that espeak-ng says in several voices. Needs espeak-ng, numpy and soundfile.

    python3 make.py
"""

import csv
import io
import pathlib
import subprocess

import numpy as np
import soundfile

HERE = pathlib.Path(__file__).parent
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
# Voice, words a minute, pitch.
VOICES = {
    "train": [
        ("en-us+m1", 150, 40), ("en-us+m2", 165, 50), ("en-us+m3", 140, 45), ("en-us+m5", 175, 35),
        ("en-us+f1", 150, 55), ("en-us+f2", 165, 50), ("en-us+f3", 140, 60), ("en-us+f5", 175, 45),
        ("en-us+m7", 160, 60), ("en-us+f4", 155, 40), ("en-us", 145, 55), ("en-us", 180, 35),
    ],
    "test": [("en-us+m4", 160, 45), ("en-us+f2", 150, 65), ("en-us", 160, 45)],
}
RATE = 8000


def spoken(word, voice, speed, pitch):
    """The word as samples from -1 to 1, RATE a second, without the silence around it."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    samples, rate = soundfile.read(io.BytesIO(wav))
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    margin = rate // 50
    samples = samples[max(0, loud[0] - margin) : loud[-1] + margin]
    # A windowed sinc, as wide as 32 samples of the lower rate.
    half = 16 * rate // RATE
    at = np.arange(int(len(samples) * RATE / rate)) * rate / RATE
    nearest = np.floor(at).astype(int)[:, None] + np.arange(1 - half, half + 1)[None, :]
    distance = at[:, None] - nearest
    window = np.cos(np.pi * np.clip(distance / (2 * half), -0.5, 0.5)) ** 2
    cutoff = 0.95 * RATE / rate
    padded = np.pad(samples, half + 1)
    around = padded[np.clip(nearest + half + 1, 0, len(padded) - 1)]
    return (np.sinc(cutoff * distance) * cutoff * window * around).sum(axis=1)


for split, voices in VOICES.items():
    folder = HERE / split
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.flac"):
        old.unlink()
    rows = []
    for number, (voice, speed, pitch) in enumerate(voices):
        for digit, word in enumerate(DIGITS):
            name = f"{digit}_{number:02}.flac"
            samples = spoken(word, voice, speed, pitch)
            soundfile.write(folder / name, 0.8 * samples / np.abs(samples).max(), RATE, subtype="PCM_16")
            rows.append((name, word, voice))
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file_name", "transcription", "voice"))
        writer.writerows(sorted(rows))
