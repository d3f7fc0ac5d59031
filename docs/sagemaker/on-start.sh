#!/bin/bash
# SageMaker notebook instance, lifecycle configuration, "Start notebook": restores the kernel "Python (diffusion)".
#
# A stop keeps ~/SageMaker with the repository and its .venv, but not Jupyter's kernel directory. This script runs as
# root, with a bare PATH and for five minutes at most, and an error would keep the instance from starting. It therefore
# only starts ./setup.sh of each installed LitDiffusion in ~/SageMaker, as the notebook's user and in the background;
# with nothing to repair that takes seconds. The output is in ~/SageMaker/litdiffusion-start.log.
sudo -u ec2-user -i <<'END' || echo "LitDiffusion: the kernel is not restored"
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
