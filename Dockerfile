# JupyterLab with the kernel. The steps were run with buildah on a base made by debootstrap, except for the compilation, and
# hadolint accepts the file; the image itself has not been built:
#   docker build -t cloze .
#   docker run --rm -p 8888:8888 cloze          (then open the URL that it prints)
# Files in /home/lab/cloze/notebooks are lost with the container; add -v "$PWD/notebooks:/home/lab/cloze/notebooks" to keep them.
FROM rust:1.95-bookworm

# Any version of the distribution will do.
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
# The kernelspec and the prelude are in the home folder and contain everything compiled that sessions need.
RUN cargo run --release --locked -- install \
    && rm -rf target \
    && ln -s /home/lab/.local/share/jupyter/kernels/cloze/cloze /home/lab/venv/bin/cloze

EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "notebooks"]
