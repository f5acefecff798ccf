#!/usr/bin/env bash
# pack-environment.sh FILE.tar.gz packs Python and all packages of uv.lock that driver and executors need. The archive
# works in any folder, on machines with the same processor and a libc that is not older. YARN unpacks it on each node:
# --archives FILE.tar.gz#env, with PYSPARK_PYTHON=./env/bin/python. It does not contain Spark, which the cluster has,
# nor jobs/ and melanoma_spark/, which melanoma-spark sends with each job.
set -euo pipefail

target=${1:?usage: pack-environment.sh FILE.tar.gz}
repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
extra=${PACK_EXTRA:-cpu}
mkdir -p "$(dirname -- "$target")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
env=$work/env

echo "installing the packages of uv.lock into a new environment"
uv=$repo/.uv/bin/uv
"$uv" venv --quiet --relocatable --no-python-downloads --python "$repo/.uv/bin/python" "$env"
# Copied, not linked: files that are removed below must stay in uv's cache. setuptools brings distutils for Petastorm.
UV_PROJECT_ENVIRONMENT=$env UV_LINK_MODE=copy "$uv" sync --project "$repo" --quiet --frozen --no-python-downloads \
    --no-install-project --extra "$extra" --extra horovod --extra hdfs --extra s3

# A virtual environment names its Python by an absolute path, so the archive gets its own Python.
read -r base version < <("$repo/.uv/bin/python" -c \
    'import sys; print(sys.base_prefix, "python%d.%d" % sys.version_info[:2])')
real=$(readlink -f "$repo/.uv/bin/python")
library=$("$real" -c 'import os; print(os.path.dirname(os.__file__))')
rm -rf "$env/pyvenv.cfg" "$env"/bin/python*
tar -C "$library" --exclude ./site-packages --exclude ./dist-packages --exclude ./test --exclude ./idlelib \
    --exclude ./tkinter --exclude ./ensurepip --exclude "./config-*" --exclude __pycache__ -cf - . |
    tar -C "$env/lib/$version" -xf -
for shared in "$base"/lib/lib"$version"*.so*; do
    [ ! -e "$shared" ] || cp -a "$shared" "$env/lib/"
done
cp "$real" "$env/bin/$version.real"
cat >"$env/bin/python" <<EOF
#!/bin/sh
here=\$(dirname -- "\$(readlink -f -- "\$0")")
LD_LIBRARY_PATH="\$here/../lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}" exec "\$here/$version.real" "\$@"
EOF
chmod +x "$env/bin/python"
ln -s python "$env/bin/python3"
ln -s python "$env/bin/$version"
# Debian's Python searches packages in other folders.
cat >"$env/lib/$version/sitecustomize.py" <<'EOF'
import os
import site

site.addsitedir(os.path.join(os.path.dirname(os.__file__), "site-packages"))
EOF

# Remove Spark's jars, which the cluster has, and headers and tests, which nothing reads at run time.
packages=$env/lib/$version/site-packages
rm -rf "$packages"/pyspark/{jars,examples,data,licenses} "$packages"/{tensorflow,pyarrow}/include \
    "$packages"/pyarrow/tests "$packages"/clang "$packages"/{pandas,numpy,scipy,sklearn}/tests
find "$packages" -name __pycache__ -prune -exec rm -rf {} +

# This import also compiles the modules to bytecode, which is packed. Containers often cannot write to the unpacked
# archive, so without bytecode each Python worker would compile for a minute of a core.
echo "importing the packages from another folder, with an empty environment"
tried="import sys; assert sys.prefix.startswith('$work/moved'), sys.prefix
import horovod.tensorflow as hvd, horovod.spark, tensorflow, keras, keras.applications, petastorm.etl.dataset_metadata
import mlflow.pyfunc, pandas, pyarrow.parquet, pyspark.pandas, pyspark.worker, cv2, ncnn, onnxruntime, hdfs_native, s3fs
assert hvd.gloo_built()"
mv "$env" "$work/moved"
env -i PATH=/usr/bin:/bin HOME="$work" TF_CPP_MIN_LOG_LEVEL=3 "$work/moved/bin/python" -W ignore -c "$tried"

echo "packing"
tar -C "$work/moved" --owner=0 --group=0 -cf - . | gzip -"${PACK_LEVEL:-6}" >"$target.part"
mv "$target.part" "$target"
echo "$target: $(du -h "$target" | cut -f1)"
