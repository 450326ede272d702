#!/bin/bash
# Made by sdclr plan. Time, partition, GPUs and how many tasks at once: options of sbatch, as in
#   mkdir -p @WORD@ && sbatch --time=4:00:00 --gres=gpu:1 --array=0-@LAST@%8 FILE
# The folder has to be there: Slurm writes the log of each task into it.
# Each task trains one encoder and probes it. Two minutes before its time is up it saves, and is queued again.
#SBATCH --job-name=@NAME@
#SBATCH --array=0-@LAST@
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --output="@FOLDER@/slurm-%a.log"
task() {
  case $1 in
@TASKS@
  *) echo "task $1 does not exist" >&2; exit 2 ;;
  esac
}
task "$SLURM_ARRAY_TASK_ID" &
trap 'again=1; kill -TERM $!' TERM INT
# A signal ends the wait, not the task.
again=1
while [ "$again" = 1 ]; do
  again=0
  wait $!
  code=$?
done
# 143: it was told to end before it could answer.
if [ "$code" = 75 ] || [ "$code" = 143 ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
