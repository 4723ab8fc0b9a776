import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    alias(libs.plugins.android.application)
}

android {
    namespace = "dev.pocketvlm.demo"
    compileSdk = libs.versions.compileSdk.get().toInt()

    defaultConfig {
        applicationId = "dev.pocketvlm.demo"
        minSdk = libs.versions.minSdk.get().toInt()
        targetSdk = libs.versions.targetSdk.get().toInt()
        versionCode = libs.versions.versionCode.get().toInt()
        versionName = libs.versions.versionName.get()
    }

    // cpu runs on every phone; npu runs on Snapdragons only, with Qualcomm's own build of ONNX Runtime.
    flavorDimensions += "processor"
    productFlavors {
        create("cpu") {
            dimension = "processor"
            isDefault = true
            ndk {
                abiFilters += listOf("arm64-v8a", "x86_64")
            }
        }
        create("npu") {
            dimension = "processor"
            ndk {
                abiFilters += "arm64-v8a"
            }
        }
    }

    buildTypes {
        release {
            // The runtime's classes are small, and ONNX Runtime's are called from native code by their names.
            isMinifyEnabled = false
        }
    }

    // The runtime is the one that the tests in runtime/kotlin run, compiled with the app.
    sourceSets.named("main") {
        kotlin.directories += "../../runtime/kotlin/core/src/main/kotlin"
        kotlin.directories += "../../runtime/kotlin/android/src/main/kotlin"
        kotlin.directories += "src/main/kotlin"
    }
    sourceSets.named("test") {
        kotlin.directories += "src/test/kotlin"
        kotlin.directories += "src/test/stubs"
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }

    testOptions {
        unitTests.isIncludeAndroidResources = true
    }
}

androidComponents {
    onVariants { variant ->
        // Libraries are mapped from the APK as they are. The NPU's processor reads its own part of Qualcomm's from files.
        variant.packaging.jniLibs.useLegacyPackaging.set(variant.flavorName == "npu")
    }
}

kotlin {
    compilerOptions {
        jvmTarget.set(JvmTarget.JVM_17)
    }
}

dependencies {
    implementation(libs.coroutines.android)
    implementation(libs.gson)
    "cpuImplementation"(libs.onnxruntime.android)
    "npuImplementation"(libs.onnxruntime.android.qnn)
    "npuImplementation"(libs.qnn.runtime)

    testImplementation(libs.junit)
    testImplementation(libs.robolectric)
    // The libraries for this computer's processor; the classes are those of onnxruntime-android.
    testImplementation(libs.onnxruntime.desktop)
}
