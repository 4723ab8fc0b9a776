package dev.pocketvlm.demo.ui

import android.widget.ImageView
import dev.pocketvlm.demo.R
import dev.pocketvlm.demo.images.Picture

/** Shows the picture small, with round corners; a symbol where there is none to show. */
fun ImageView.showThumbnail(picture: Picture?) {
    clipToOutline = true
    val bitmap = picture?.thumbnail
    if (bitmap != null) {
        scaleType = ImageView.ScaleType.CENTER_CROP
        imageTintList = null
        setImageBitmap(bitmap)
    } else {
        scaleType = ImageView.ScaleType.CENTER
        imageTintList = context.getColorStateList(R.color.text_quiet)
        setImageResource(R.drawable.ic_picture)
    }
}
