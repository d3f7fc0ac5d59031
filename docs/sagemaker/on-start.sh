#!/bin/bash
# SageMaker notebook instance, lifecycle configuration, "Start notebook": brings the kernel "Python (diffusion)" back.
#
# A stop keeps ~/SageMaker with the repository and its .venv, but not the place where Jupyter looks for kernels. This
# runs as root, with a bare PATH and five minutes at most, and an error would keep the instance from starting. So it
# only starts ./setup.sh of each LitDiffusion in ~/SageMaker that has been set up, as the notebook's user and in the
# background; with nothing to mend that takes seconds. What it says is in ~/SageMaker/litdiffusion-start.log.
sudo -u ec2-user -i <<'END' || echo "LitDiffusion: the kernel is not brought back"
nohup bash -c '
for setup in "$HOME"/SageMaker/*/setup.sh; do
  folder=${setup%/*}
  if [ -x "$folder/.venv/bin/python" ] && grep -qs "^name = .litdiffusion" "$folder/pyproject.toml"; then
    echo "$folder"
    bash "$setup"
  fi
done
' > "$HOME/SageMaker/litdiffusion-start.log" 2>&1 < /dev/null &
END
exit 0
