# JupyterLab with the kernel. Its steps were run with buildah on a base made by debootstrap, all but the compilation, and
# hadolint reads it; the image itself was not built here:
#   docker build -t cloze .
#   docker run --rm -p 8888:8888 cloze          (then open the address that it prints)
# What is made in /home/lab/cloze/notebooks goes with the container; add -v "$PWD/notebooks:/home/lab/cloze/notebooks" to keep it.
FROM rust:1.95-bookworm

# Whatever version the distribution has serves.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends mold python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && rustup component add rust-src \
    && useradd --create-home --shell /bin/bash lab

USER lab
ENV PATH=/home/lab/venv/bin:$PATH
RUN python3 -m venv /home/lab/venv && pip install --no-cache-dir 'jupyterlab==4.*'

COPY --chown=lab . /home/lab/cloze
WORKDIR /home/lab/cloze
# The kernelspec and the prelude are in the home and keep all that sessions need of what is compiled.
RUN cargo run --release --locked -- install \
    && rm -rf target \
    && ln -s /home/lab/.local/share/jupyter/kernels/cloze/cloze /home/lab/venv/bin/cloze

EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "notebooks"]
