#!/usr/bin/env bash
# Builds the demo's APK and the command line runner without Gradle and without an Android SDK: everything comes from Debian's
# packages and from Maven Central. README.md, "Building", explains it; --help lists the options.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(dirname "$HERE")
TOOLS=$HERE/tools
RUNTIME=$REPOSITORY/runtime/kotlin
PACKAGE=dev.pocketvlm.demo

usage() {
    cat <<USAGE
usage: build_apk.sh [options]
  --onnxruntime-android FILE  onnxruntime-android, with the native libraries; else that of POCKETVLM_ONNXRUNTIME_AAR, else
                          what Maven or Gradle has fetched; without one, the APK can show its screens and run no model
  --npu                   build the variant for Qualcomm's NPU, which takes two other archives:
  --qnn-aar FILE            onnxruntime-android-qnn  (or POCKETVLM_QNN_AAR)
  --qnn-runtime-aar FILE    qnn-runtime              (or POCKETVLM_QNN_RUNTIME_AAR)
  --runner-only           build pocketvlm-runner.jar alone
  --from-dex              build pocketvlm-from-dex.jar alone: the runtime's Dalvik code made class files again, so that a
                          test can run it on a JVM
  --tools-only            install what is missing, as root on Debian, or say what it is
  --output DIR            where to build (build/android)
  --app DIR               the app's sources (android_demo/app/src/main)
Environment: POCKETVLM_MAVEN_REPOSITORY, a local Maven repository other than the usual one.
USAGE
}

fail() {
    echo "error: $1" >&2
    exit "${2:-5}"
}

out=$REPOSITORY/build/android
app=$HERE/app/src/main
onnxruntime_aar=${POCKETVLM_ONNXRUNTIME_AAR:-}
qnn_aar=${POCKETVLM_QNN_AAR:-}
qnn_runtime_aar=${POCKETVLM_QNN_RUNTIME_AAR:-}
npu=false
only=apk
while [ $# -gt 0 ]; do
    case $1 in
    --onnxruntime-android) onnxruntime_aar=${2:?$1 needs a file} && shift 2 ;;
    --qnn-aar) qnn_aar=${2:?$1 needs a file} && shift 2 ;;
    --qnn-runtime-aar) qnn_runtime_aar=${2:?$1 needs a file} && shift 2 ;;
    --output) out=${2:?$1 needs a folder} && shift 2 ;;
    --app) app=${2:?$1 needs a folder} && shift 2 ;;
    --npu) npu=true && shift ;;
    --runner-only) only=runner && shift ;;
    --tools-only) only=tools && shift ;;
    --from-dex) only=from_dex && shift ;;
    --help | -h) usage && exit 0 ;;
    *) usage >&2 && fail "no such option: $1" 2 ;;
    esac
done

# --- what has to be there -------------------------------------------------------------------------------------------------

install_tools() {
    local missing=() program package
    while read -r program package; do
        command -v "$program" >/dev/null || missing+=("$package")
    done <<'PACKAGES'
javac openjdk-17-jdk-headless
mvn maven
aapt2 aapt
zipalign zipalign
apksigner apksigner
PACKAGES
    if [ ${#missing[@]} -gt 0 ]; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            echo "installing ${missing[*]}" >&2
            { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } \
                >"$out/apt.log" 2>&1 || fail "apt-get could not install ${missing[*]}: see $out/apt.log"
        else
            fail "needed, and not here: ${missing[*]} (Debian's names); install them"
        fi
    fi
    local java_version
    java_version=$(javac -version 2>&1 | sed 's/javac \([0-9]*\).*/\1/')
    [ "$java_version" -ge 17 ] || fail "javac is version $java_version; 17 or newer is needed"
    python3 -c 'import sys, tomllib' 2>/dev/null || fail "python3 3.11 or newer is needed"
}

step() {
    local name=$1 start
    shift
    start=$(date +%s%N)
    "$@"
    printf '%7.1f s  %s\n' "$(($(date +%s%N) - start))e-9" "$name" >&2
}

maven() {
    mvn -q -B -Dstyle.color=never ${POCKETVLM_MAVEN_REPOSITORY:+"-Dmaven.repo.local=$POCKETVLM_MAVEN_REPOSITORY"} "$@"
}

# The files of a pom's dependencies, one a line, in $cache/NAME.files. Asked again when a pom has changed or a file has gone.
resolve() {
    local name=$1 list=$cache/$1.files
    if [ -f "$list" ] && [ "$list" -nt "$TOOLS/pom/$name.xml" ] && [ "$list" -nt "$RUNTIME/pom.xml" ] &&
        xargs -d '\n' ls >/dev/null 2>&1 <"$list"; then
        return
    fi
    maven -f "$TOOLS/pom/$name.xml" dependency:build-classpath -DincludeScope=runtime -Dmdep.outputFile="$list.part" >&2
    { tr ':' '\n' <"$list.part" && echo; } | sed '/^$/d' >"$list"
    rm "$list.part"
}

# One file of a list, by a part of its name.
file_of() {
    grep -F "$2" "$cache/$1.files" | head -1
}

class_path() {
    paste -sd: "$@"
}

version_of() {
    python3 - "$HERE/gradle/libs.versions.toml" "$1" <<'PYTHON'
import sys, tomllib
print(tomllib.load(open(sys.argv[1], "rb"))["versions"][sys.argv[2]])
PYTHON
}

# --- inputs ---------------------------------------------------------------------------------------------------------------

find_onnxruntime_aar() {
    local version file
    version=$(sed -n 's:.*<onnxruntime.version>\(.*\)</onnxruntime.version>.*:\1:p' "$RUNTIME/pom.xml")
    local group=com.microsoft.onnxruntime name=onnxruntime-android
    for file in "${POCKETVLM_MAVEN_REPOSITORY:-$HOME/.m2/repository}/${group//.//}/$name/$version/$name-$version.aar" \
        "$HOME/.gradle/caches/modules-2/files-2.1/$group/$name/$version"/*/"$name-$version.aar"; do
        if [ -f "$file" ]; then
            echo "$file"
            return
        fi
    done
}

# Unpacks archives below $work/aar and names their libraries' folders in natives.
unpack_archives() {
    local abis=arm64-v8a,x86_64 archive
    if $npu; then
        # There is no NPU beside a processor of another kind.
        abis=arm64-v8a
        if [ -z "$qnn_aar" ] || [ -z "$qnn_runtime_aar" ]; then
            fail "--npu needs --qnn-aar and --qnn-runtime-aar" 2
        fi
        archives=("$qnn_aar" "$qnn_runtime_aar")
        apk=$out/pocketvlm-demo-npu.apk
    else
        [ -n "$onnxruntime_aar" ] || onnxruntime_aar=$(find_onnxruntime_aar)
        archives=(${onnxruntime_aar:+"$onnxruntime_aar"})
    fi
    rm -rf "${work:?}/aar" "${work:?}/lib"
    mkdir -p "$work/lib"
    for archive in ${archives[@]+"${archives[@]}"}; do
        [ -f "$archive" ] || fail "$archive: no such file"
        python3 "$TOOLS/unpack_aar.py" "$work/aar" "$abis" "$archive"
    done
    for archive in ${archives[@]+"${archives[@]}"}; do
        cp -R "$work/aar/$(basename "${archive%.*}")/lib/." "$work/lib/"
    done
}

# The Java API of ONNX Runtime: that of its archive, or else of the jar for desktops, whose classes are the same.
onnxruntime_classes() {
    local folder
    for folder in "$work"/aar/*; do
        if [ -f "$folder/classes.jar" ] && python3 -m zipfile -l "$folder/classes.jar" | grep -q '^ai/onnxruntime/OrtSession.class '; then
            cp "$folder/classes.jar" "$work/onnxruntime.jar"
            return
        fi
    done
    python3 - "$(file_of libraries /onnxruntime-)" "$work/onnxruntime.jar" <<'PYTHON'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as source, zipfile.ZipFile(sys.argv[2], "w") as target:
    for name in source.namelist():
        if name.startswith("ai/onnxruntime/") and name.endswith(".class"):
            target.writestr(zipfile.ZipInfo(name), source.read(name))
PYTHON
}

# --- steps ----------------------------------------------------------------------------------------------------------------

runtime_classes() {
    local jars=("$RUNTIME/core/target/pocketvlm-core-0.1.0.jar" "$RUNTIME/android/target/pocketvlm-android-0.1.0.jar") jar
    for jar in "${jars[@]}"; do
        if ! up_to_date "$jar" "$RUNTIME/pom.xml" "$RUNTIME"/core/{pom.xml,src/main} "$RUNTIME"/android/{pom.xml,src/main}; then
            maven -f "$RUNTIME/pom.xml" -pl core,android -DskipTests -Dmaven.test.skip=true package >&2
            break
        fi
    done
    cp -p "${jars[@]}" "$work/"
}

# Whether a file is there and no input is newer.
up_to_date() {
    local target=$1
    shift
    [ -f "$target" ] && [ -z "$(find "$@" -newer "$target" -print -quit)" ]
}

d8() {
    java -Xmx2g -cp "$(class_path "$cache/r8.files")" com.android.tools.r8.D8 --release --min-api "$min_sdk" \
        --lib "$android_classes" --lib "$java_home" "$@"
}

# What does not change from build to build is converted once.
libraries_dex() {
    local key
    key=$({ cat "$cache/r8.files" && xargs -d '\n' sha256sum <"$work/libraries.txt" | cut -d' ' -f1; } | sha256sum | cut -c1-16)
    libraries_dex=$cache/libraries-$min_sdk-$key.zip
    [ -f "$libraries_dex" ] && return
    mapfile -t jars <"$work/libraries.txt"
    d8 --output "$work/libraries.part.zip" "${jars[@]}"
    mv "$work/libraries.part.zip" "$libraries_dex"
}

kotlin() {
    local target=$1 libraries=$2
    shift 2
    java -Xmx1500m -cp "$(class_path "$cache/kotlinc.files")" org.jetbrains.kotlin.cli.jvm.K2JVMCompiler \
        -no-stdlib -no-reflect -jvm-target 17 -Werror -Xnullability-annotations=@android.annotation:ignore \
        -cp "$libraries:$android_classes" -d "$target" "$@"
}

runner_jar() {
    up_to_date "$out/pocketvlm-runner.jar" "$work"/pocketvlm-{core,android}-0.1.0.jar "$libraries_dex" "$HERE/runner" && return
    kotlin "$work/runner.jar" "$libraries" "$HERE/runner/src/main/kotlin"
    d8 --output "$work/runner-dex.zip" "$work/runner.jar" "$work"/pocketvlm-{core,android}-0.1.0.jar "$libraries_dex"
    pack "$work/pocketvlm-runner.jar" "$work/runner-dex.zip"
    mv "$work/pocketvlm-runner.jar" "$out/pocketvlm-runner.jar"
}

# dex2jar reads what D8 writes for Android 6, at most.
from_dex() {
    local target=$out/pocketvlm-from-dex.jar jars
    up_to_date "$target" "$work/pocketvlm-core-0.1.0.jar" "$libraries_dex" && return
    mapfile -t jars <"$work/libraries.txt"
    min_sdk=23 d8 --output "$work/old-dex.zip" "$work/pocketvlm-core-0.1.0.jar" "${jars[@]}"
    rm -f "$work/from-dex.jar"
    java -Xmx2g -cp "$(class_path "$cache/dex2jar.files")" com.googlecode.dex2jar.tools.Dex2jarCmd --force \
        --output "$work/from-dex.jar" "$work/old-dex.zip" >"$work/dex2jar.log" 2>&1 || { cat "$work/dex2jar.log" >&2 && exit 5; }
    mv "$work/from-dex.jar" "$target"
}

resources() {
    local framework=$cache/framework.zip assets=()
    if [ ! "$framework" -nt "$cache/resources.files" ]; then
        # aapt2 wants a small archive, and the table uncompressed.
        python3 - "$(file_of resources /android-all-)" "$framework" <<'PYTHON'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as source, zipfile.ZipFile(sys.argv[2], "w") as target:
    for name in ("AndroidManifest.xml", "resources.arsc"):
        target.writestr(name, source.read(name))
PYTHON
    fi
    python3 "$TOOLS/complete_manifest.py" "$app/AndroidManifest.xml" "$work/AndroidManifest.xml" "$PACKAGE" "$npu"
    [ -d "$app/assets" ] && assets=(-A "$app/assets")
    rm -rf "$work/generated"
    # Debian's aapt2 is of 2018: it does not know some elements, and complains about what it skips in newer resources.
    {
        aapt2 compile --dir "$app/res" -o "$work/resources.zip" &&
            aapt2 link -o "$work/base.apk" -I "$framework" --manifest "$work/AndroidManifest.xml" --java "$work/generated" \
                --min-sdk-version "$min_sdk" --target-sdk-version "$(version_of targetSdk)" \
                --version-code "$(version_of versionCode)" --version-name "$(version_of versionName)" --debug-mode \
                --warn-manifest-validation --auto-add-overlay ${assets[@]+"${assets[@]}"} "$work/resources.zip"
    } >"$work/aapt2.log" 2>&1 || { cat "$work/aapt2.log" >&2 && exit 5; }
}

compile_app() {
    up_to_date "$work/app.jar" "$app" "$HERE/gradle" "$work"/pocketvlm-{core,android}-0.1.0.jar "$libraries_dex" && return
    rm -rf "$work/classes"
    mkdir "$work/classes"
    find "$work/generated" -name '*.java' -print0 | xargs -0 javac -nowarn --release 17 -d "$work/classes"
    kotlin "$work/app.jar" "$work/classes:$libraries" "$app/kotlin"
    (cd "$work/classes" && zip_into "$work/app.jar" .)
}

# Adds a folder's files to an archive.
zip_into() {
    python3 - "$@" <<'PYTHON'
import pathlib, sys, zipfile
folder = pathlib.Path(sys.argv[2])
with zipfile.ZipFile(sys.argv[1], "a", zipfile.ZIP_DEFLATED) as target:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            target.write(path, path.relative_to(folder).as_posix())
PYTHON
}

app_dex() {
    up_to_date "$work/app-dex.zip" "$work/app.jar" "$work"/pocketvlm-{core,android}-0.1.0.jar "$libraries_dex" && return
    d8 --output "$work/app-dex.zip" "$work/app.jar" "$work"/pocketvlm-{core,android}-0.1.0.jar "$libraries_dex"
}

# Puts together an archive: code compressed, native libraries as they are.
pack() {
    python3 - "$@" <<'PYTHON'
import pathlib, sys, zipfile
target, code, *rest = sys.argv[1:]
with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
    for base in rest[:1]:
        with zipfile.ZipFile(base) as source:
            for entry in source.infolist():
                archive.writestr(entry, source.read(entry))
    with zipfile.ZipFile(code) as source:
        for name in source.namelist():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), source.read(name), zipfile.ZIP_DEFLATED)
    for folder in map(pathlib.Path, rest[1:]):
        for path in sorted(folder.rglob("*.so")):
            archive.write(path, f"lib/{path.relative_to(folder).as_posix()}", zipfile.ZIP_STORED)
PYTHON
}

package() {
    pack "$work/unaligned.apk" "$work/app-dex.zip" "$work/base.apk" "$work/lib"
    python3 "$TOOLS/align_apk.py" "$work/unaligned.apk" "$work/aligned.apk"
    # Android installs an update over an APK of the same key only, so it is kept; it protects nothing, and is not committed.
    if [ ! -f "$out/debug.keystore" ]; then
        keytool -genkeypair -keystore "$out/debug.keystore" -storepass android -keypass android -alias androiddebugkey \
            -keyalg RSA -keysize 2048 -validity 10000 -dname "CN=Android Debug,O=Android,C=US" 2>"$work/keytool.log"
    fi
    apksigner sign --ks "$out/debug.keystore" --ks-pass pass:android --v1-signing-enabled false --v2-signing-enabled true \
        --v3-signing-enabled true --v4-signing-enabled false --out "$work/signed.apk" "$work/aligned.apk"
}

check() {
    zipalign -c -p 4 "$work/signed.apk" || fail "zipalign does not like the APK" 4
    local kind=()
    $npu && kind=(--npu)
    [ ${#archives[@]} -gt 0 ] || kind=(--without-natives)
    # What is wrong is kept under another name, to look at.
    rm -f "$apk" "$apk.rejected"
    mv "$work/signed.apk" "$apk"
    python3 "$TOOLS/check_apk.py" --signature "$signature" --android-all "$android_classes" --apksigner apksigner \
        ${kind[@]+"${kind[@]}"} "$apk" || { mv "$apk" "$apk.rejected" && exit 4; }
}

check_runner() {
    python3 "$TOOLS/check_apk.py" --signature "$signature" --android-all "$android_classes" "$out/pocketvlm-runner.jar"
}

# --- all of it ------------------------------------------------------------------------------------------------------------

cache=$out/cache
work=$out/work
mkdir -p "$cache" "$work"
out=$(cd "$out" && pwd)
cache=$out/cache
work=$out/work
archives=()
apk=$out/pocketvlm-demo.apk

step "tools" install_tools
[ "$only" = tools ] && exit 0
min_sdk=$(version_of minSdk)
java_home=$(dirname "$(dirname "$(readlink -f "$(command -v javac)")")")
for name in libraries android resources kotlinc r8; do
    step "Maven: $name" resolve "$name"
done
android_classes=$(file_of android /android-all-)
signature=$(file_of android .signature)

step "Android archives" unpack_archives
[ ${#archives[@]} -gt 0 ] || apk=$out/pocketvlm-demo-without-natives.apk
step "ONNX Runtime's classes" onnxruntime_classes
step "runtime: core and android" runtime_classes
# Annotations for compilers are of no use in an APK.
{ grep -v -e /onnxruntime- -e /annotations- -e /error_prone_ "$cache/libraries.files" && echo "$work/onnxruntime.jar"; } \
    >"$work/libraries.txt"
libraries=$(class_path "$work/libraries.txt"):$work/pocketvlm-core-0.1.0.jar:$work/pocketvlm-android-0.1.0.jar
step "D8: libraries" libraries_dex
if [ "$only" = from_dex ]; then
    step "Maven: dex2jar" resolve dex2jar
    step "D8 and dex2jar" from_dex
    exit 0
fi
step "kotlinc and D8: runner" runner_jar
step "check: runner" check_runner
[ "$only" = runner ] && exit 0

step "aapt2" resources
step "kotlinc: app" compile_app
step "D8: app" app_dex
step "package and sign" package
step "check: APK" check
echo "$apk"
if [ ${#archives[@]} -eq 0 ]; then
    cat >&2 <<NOTE
note: $(basename "$apk") has NO native libraries and cannot run a model: onnxruntime-android was not found.
      Give its archive by --onnxruntime-android FILE, or have Maven fetch it:
      mvn dependency:get -Dartifact=com.microsoft.onnxruntime:onnxruntime-android:VERSION:aar
NOTE
fi
